"""Splits of observations into training and held-out steps, always by group.

A job is one load run and never stands on both sides. Where an imported table lets one ``job_id`` span several of the
groups that are held out (one job with prefill and decode workloads), each part counts as a run of its own, and
:attr:`Fold.shared_jobs` says how many ids that concerns.
"""

from __future__ import annotations

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

    ``dense-to-moe`` trains on dense models and holds out all mixture-of-experts models. ``time`` holds out the last
    20 % of the jobs (at least one) by their first ``t_schedule_start_ns``; where a clock reading is missing, by order
    of appearance. :func:`why_impossible` says why a split has no folds.
    """
    if why_impossible(observations, catalog, split):
        return ()
    if split == "dense-to-moe":
        return (_fold(observations, "moe", _is_moe(observations, catalog)),)
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
    if split == "dense-to-moe":
        return _why_not_dense_to_moe(_is_moe(observations, catalog))
    column = "job_id" if split == "time" else _GROUPED_BY[split]
    names, _ = observations.codes(column)
    if len(names) >= 2:
        return ""
    return f"{split} needs at least two values of {column}, the observations hold only {names[0] or 'null'!r}"


def _why_not_dense_to_moe(is_moe: BoolArray) -> str:
    if is_moe.all():
        return "dense-to-moe needs steps of a dense model to train on, the observations hold none"
    if not is_moe.any():
        return "dense-to-moe needs steps of a mixture-of-experts model to hold out, the observations hold none"
    return ""


def _is_moe(observations: Observations, catalog: Catalog) -> BoolArray:
    by_configuration = [catalog.resolve_model(one.model).is_moe for one in observations.configurations]
    return np.array(by_configuration, dtype=bool)[observations.configuration_index]


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
