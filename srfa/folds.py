"""Splits of observations into training and held-out steps, always by group.

A job is one load run and never stands on both sides. Where an imported table lets one ``job_id`` span several of the
groups that are held out (one job with prefill and decode workloads), each part counts as a run of its own, and
:attr:`Fold.shared_jobs` says how many ids that concerns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from srfa.catalog import Catalog
from srfa.errors import UsageError
from srfa.observations import Observations
from srfa.ragged import IntArray
from srfa.wording import unknown

BoolArray = NDArray[np.bool_]

Split = Literal[
    "leave-one-gpu-out",
    "leave-one-model-out",
    "dense-to-moe",
    "moe-to-dense",
    "ep1-to-ep",
    "leave-one-workload-out",
    "leave-one-tp-out",
    "leave-one-job-out",
    "time",
]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_SHARE_OF_TIME = 0.2
"""The split ``time`` holds out this share of the jobs, the last ones."""

_GROUPED_BY = {
    "leave-one-gpu-out": "gpu",
    "leave-one-model-out": "model",
    "leave-one-workload-out": "workload",
    "leave-one-tp-out": "tensor_parallel_size",
    "leave-one-job-out": "job_id",
}


@dataclass(frozen=True, slots=True)
class _OneWay:
    """A split with one fold: what is trained on and what is held out, in words, and the held-out steps."""

    trained_on: str
    held_out: str
    fold_name: str
    is_held_out: Callable[[Observations, Catalog], BoolArray]


@dataclass(frozen=True, slots=True)
class Fold:
    """One held-out group.

    Parameters
    ----------
    held_out
        The group's name: a GPU, a model, a workload, ...
    train, test
        Row numbers, ascending; together with no overlap.
    shared_jobs
        Job ids with steps on both sides, 0 wherever a job is one load run.
    """

    held_out: str
    train: IntArray
    test: IntArray
    shared_jobs: int = 0


def split_named(name: str) -> Split:
    """Return ``name`` as a split.

    Raises
    ------
    UsageError
        There is no split of that name.

    Examples
    --------
    >>> split_named("time")
    'time'
    """
    for split in SPLITS:
        if split == name:
            return split
    raise UsageError(unknown("split", name, SPLITS))


def split_folds(observations: Observations, catalog: Catalog, split: Split) -> tuple[Fold, ...]:
    """Return the folds of a split, ordered by the name held out; empty where the data do not allow it.

    ``dense-to-moe`` trains on dense models and holds out all mixture-of-experts models, ``moe-to-dense`` the other way
    round; ``ep1-to-ep`` trains on steps with ``expert_parallel_size`` 1 and holds out all others. ``time`` holds out
    the last 20 % of the jobs (at least one) by their first ``t_schedule_start_ns``; where a clock reading is missing,
    by order of appearance. :func:`why_impossible` says why a split has no folds.
    """
    if why_impossible(observations, catalog, split):
        return ()
    if split in _ONE_WAY:
        one_way = _ONE_WAY[split]
        return (_fold(observations, one_way.fold_name, one_way.is_held_out(observations, catalog)),)
    if split == "time":
        return (_fold(observations, f"last {HELD_OUT_SHARE_OF_TIME:.0%} of jobs", _is_late(observations)),)
    names, codes = observations.codes(_GROUPED_BY[split])
    return tuple(
        _fold(observations, _group_name(split, names[code]), codes == code) for code in np.argsort(np.array(names))
    )


def _group_name(split: Split, value: str) -> str:
    if split == "leave-one-tp-out":
        return f"tp{value}"
    return value or "(unnamed)"


def why_impossible(observations: Observations, catalog: Catalog, split: Split) -> str:
    """Return why a split cannot be made of these observations; empty where it can."""
    if split in _ONE_WAY:
        return _why_not_one_way(split, _ONE_WAY[split].is_held_out(observations, catalog))
    column = "job_id" if split == "time" else _GROUPED_BY[split]
    names, _ = observations.codes(column)
    if len(names) >= 2:
        return ""
    return f"{split} needs at least two values of {column}, the observations hold only {names[0] or 'null'!r}"


def _why_not_one_way(split: Split, is_held_out: BoolArray) -> str:
    one_way = _ONE_WAY[split]
    if is_held_out.all():
        return f"{split} needs steps of {one_way.trained_on} to train on, the observations hold none"
    if not is_held_out.any():
        return f"{split} needs steps of {one_way.held_out} to hold out, the observations hold none"
    return ""


def _is_moe(observations: Observations, catalog: Catalog) -> BoolArray:
    by_configuration = [catalog.resolve_model(one.model).is_moe for one in observations.configurations]
    return np.array(by_configuration, dtype=bool)[observations.configuration_index]


def _is_dense(observations: Observations, catalog: Catalog) -> BoolArray:
    return ~_is_moe(observations, catalog)


def _is_expert_parallel(observations: Observations, catalog: Catalog) -> BoolArray:
    del catalog
    by_configuration = [one.expert_parallel_size > 1 for one in observations.configurations]
    return np.array(by_configuration, dtype=bool)[observations.configuration_index]


_ONE_WAY: dict[str, _OneWay] = {
    "dense-to-moe": _OneWay("a dense model", "a mixture-of-experts model", "moe", _is_moe),
    "moe-to-dense": _OneWay("a mixture-of-experts model", "a dense model", "dense", _is_dense),
    "ep1-to-ep": _OneWay("expert_parallel_size 1", "expert_parallel_size above 1", "ep>1", _is_expert_parallel),
}


def _is_late(observations: Observations) -> BoolArray:
    jobs, job = observations.codes("job_id")
    started = observations.numbers("t_schedule_start_ns")
    if np.isnan(started).any():
        started = np.arange(len(job), dtype=np.float64)
    first = np.full(len(jobs), np.inf)
    np.minimum.at(first, job, started)
    n_held_out = max(1, round(HELD_OUT_SHARE_OF_TIME * len(jobs)))
    return np.isin(job, np.argsort(first, kind="stable")[-n_held_out:])


def _fold(observations: Observations, name: str, held_out: BoolArray) -> Fold:
    _, job = observations.codes("job_id")
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Fold(name, train, test, len(np.intersect1d(job[train], job[test])))
