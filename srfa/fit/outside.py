"""What a release says of a request's time outside the steps, and of an engine's time between them.

Six blocks, whatever the estimator of the steps: ``alpha`` (hand-over: arrival to queued on an idle engine), ``post``
and ``alpha_token`` (from a token's step to the client: the constant, and what each output token adds), ``queue_wait``
(queued to first scheduled, for users who have no simulator), ``between_steps`` and ``wall_ratio``. All are medians by
non-negative coefficients, so that stalls of a busy host do not move them; ``wall_ratio`` alone counts what they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from scipy.optimize import nnls

from srfa.coefficients import CoefficientBlock, FitConfig
from srfa.errors import CoefficientsError, FitError
from srfa.features import Block, Columns
from srfa.fit.learned import NON_NEGATIVE, learned_block
from srfa.fit.positive import fit_between
from srfa.fit.queue import alpha_features, queue_wait_features
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.requests import RequestObservations
from srfa.units import NS_PER_US

Blocks = Mapping[str, CoefficientBlock]

_Fit = Callable[[], Mapping[str, CoefficientBlock]]

REQUEST_MODELS: Final = ("alpha", "queue_wait", "alpha_token", "post")
"""Learned from requests."""
OUTSIDE_BLOCKS: Final = frozenset({*REQUEST_MODELS, "between_steps", "wall_ratio"})
"""Coefficients of what happens outside the steps: no step's time depends on them."""
TRIMMED_RATIO: Final = 3.0
"""A hand-over this much longer than the typical one is a stall of the host, not a hand-over."""
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class OutsideFit:
    """Those of the six blocks that could be fitted, and by name why the others could not."""

    blocks: Mapping[str, CoefficientBlock]
    refusals: Mapping[str, str]

    @classmethod
    def refused(cls, reason: str) -> OutsideFit:
        """Return no block at all."""
        return cls({}, dict.fromkeys(sorted(OUTSIDE_BLOCKS), reason))


def fit_outside(
    requests: RequestObservations, config: FitConfig, *, steps: pa.Table, jobs: pa.Table, observations: Observations
) -> OutsideFit:
    """Fit all six blocks, each by itself: what the data cannot carry takes no other block along.

    Parameters
    ----------
    steps, jobs
        Kept tables of the same run, for ``between_steps``.
    observations
        Its usable steps, for ``wall_ratio``.
    """
    fits = _request_fits(requests, config) | {
        ("between_steps",): lambda: {"between_steps": fit_between_steps(steps, jobs, max_rows=config.convex_max_rows)},
        ("wall_ratio",): lambda: {"wall_ratio": fit_wall_ratio(observations)},
    }
    blocks: dict[str, CoefficientBlock] = {}
    refusals: dict[str, str] = {}
    for names, fit in fits.items():
        try:
            blocks |= fit()
        except FitError as error:
            refusals |= dict.fromkeys(names, str(error))
    return OutsideFit(blocks, refusals)


def fit_requests(requests: RequestObservations, config: FitConfig) -> dict[str, CoefficientBlock]:
    """Fit ``alpha``, ``queue_wait``, ``alpha_token`` and ``post``; every coefficient is non-negative.

    Raises
    ------
    FitError
        Too few requests for a model, which the text names.
    """
    return {name: block for fit in _request_fits(requests, config).values() for name, block in fit().items()}


def _request_fits(requests: RequestObservations, config: FitConfig) -> dict[tuple[str, ...], _Fit]:
    """Return what fits each block, by the names of those that are fitted together."""
    rows, wait = config.convex_max_rows, requests.queue_wait_us

    def queue_wait() -> CoefficientBlock:
        return fit_between(queue_features(requests, config), wait, wait, what="queue_wait", max_rows=rows)

    return {
        ("alpha",): lambda: {"alpha": fit_handover(alpha_features(requests), requests, max_rows=rows)},
        ("queue_wait",): lambda: {"queue_wait": queue_wait()},
        ("alpha_token", "post"): lambda: fit_post(requests, max_rows=rows),
    }


def fit_handover(block: Block, requests: RequestObservations, *, max_rows: int) -> CoefficientBlock:
    """Fit the hand-over to its bounds, robustly.

    A request that had to wait for a step bounds its hand-over to the length of that step, so that what lies within the
    bounds says little and each stall much. Therefore requests further than :data:`TRIMMED_RATIO` times the fitted
    hand-over outside their bounds are left out and the rest fitted again, until those are the same.

    Raises
    ------
    FitError
        Fewer requests than columns.
    """
    least, most = requests.handover_least_us, requests.arrival_to_queued_us
    kept = np.ones(requests.n_requests, dtype=bool)
    for _ in range(_ROUNDS):
        rows = np.flatnonzero(kept)
        fitted = fit_between(block.take(rows), least[rows], most[rows], what="alpha", max_rows=max_rows)
        handover_us = block.values @ np.array(fitted.values)
        before, kept = kept, np.maximum(least - handover_us, handover_us - most) <= TRIMMED_RATIO * handover_us
        if kept.sum() < len(block.names) or np.array_equal(before, kept):
            break
    return fitted


def queue_features(requests: RequestObservations, config: FitConfig) -> Block:
    """Return those of :func:`~srfa.fit.queue.queue_wait_features`, and what the queue's prompts take to compute.

    The queue's prompts are taken as long as this one: ``waiting x uncached prompt tokens`` over what a step takes in,
    ``max_num_batched_tokens`` (steps), and at the dense peak (microseconds).
    """
    queued_us = requests.waiting_at_queue * (1.0 - requests.cached_share) * requests.prompt_compute_us
    queued_tokens = requests.waiting_at_queue * (1.0 - requests.cached_share) * requests.prompt_tokens
    columns: Columns = {
        ("queued_prompt_compute", "us"): queued_us,
        ("queued_prompt_steps", "steps"): queued_tokens / requests.max_num_batched_tokens,
    }
    own, more = queue_wait_features(requests, config), Block.of(columns, requests.n_requests)
    return Block(own.names + more.names, own.units + more.units, np.hstack([own.values, more.values]))


def fit_post(requests: RequestObservations, *, max_rows: int) -> dict[str, CoefficientBlock]:
    """Fit ``post`` and ``alpha_token`` together, to a request's first token and to its last one.

    ``first_outside = post + alpha_token`` and ``outside = post + alpha_token x output_tokens``. A token that is
    streamed while the next one is computed delays nothing, so that ``alpha_token`` may well be 0.
    """
    tokens = np.concatenate([np.ones(requests.n_requests), requests.output_tokens])
    times = np.concatenate([requests.first_outside_us, requests.outside_us])
    block = Block.of({("intercept", "us"): 1.0, ("output_tokens", "tokens"): tokens}, len(times))
    order = np.argsort(np.tile(np.arange(requests.n_requests), 2), kind="stable")
    joint = fit_between(block.take(order), times[order], times[order], what="post and alpha_token", max_rows=max_rows)
    return {"alpha_token": _column(joint, 1), "post": _column(joint, 0)}


def fit_between_steps(steps: pa.Table, jobs: pa.Table, *, max_rows: int) -> CoefficientBlock:
    """Fit ``t_schedule_start[k + 1] - t_output[k]`` to ``[1, scheduled requests of k + 1]``.

    Only steps with the next id, where work was waiting, of jobs with synchronous scheduling: with asynchronous
    scheduling a label reaches from output to output and nothing lies between. Zeros where there are no such steps.
    """
    requests, gap_us = _gaps(steps, jobs)
    block = Block.of({("intercept", "us"): 1.0, ("scheduled_requests", "requests"): requests}, len(gap_us))
    if len(gap_us) < len(block.names):
        return learned_block(block, np.zeros(2), np.ones(2), bounds=NON_NEGATIVE)
    return fit_between(block, gap_us, gap_us, what="between_steps", max_rows=max_rows)


def fit_wall_ratio(observations: Observations) -> CoefficientBlock:
    """Return wall time over label by GPU: 1 where the label is wall time.

    The median over a GPU's jobs of ``sum(step_wall_time_us) / sum(step_time_us)``. A request's time is the sum of many
    steps, so that what a job's steps lose on average counts, which the median step does not say; the median over jobs
    leaves out a job that met a busy host. The names of the block are the GPUs as the observations name them.
    """
    gpus, gpu = observations.codes("gpu")
    jobs, job = observations.codes("job_id")
    label_us = observations.step_time_us
    wall_us = label_us
    if "step_wall_time_us" in observations.table.column_names:
        known_us = observations.numbers("step_wall_time_us")
        wall_us = np.where(np.isfinite(known_us), known_us, label_us)
    runs, run = np.unique(gpu * len(jobs) + job, return_inverse=True)
    ratios = np.bincount(run, wall_us) / np.bincount(run, label_us)
    medians = np.array([np.median(ratios[runs // len(jobs) == code]) for code in range(len(gpus))])
    block = Block(tuple(gpus), ("1",) * len(gpus), np.empty((0, len(gpus))))
    return learned_block(block, medians, np.ones(len(gpus)))


def blackbox_alphas(requests: RequestObservations) -> tuple[float, float, float]:
    """Return the three coefficients of a black box, as BLIS fits its alphas, microseconds: the yardstick.

    Mean of arrival to queued a request; then non-negative least squares of what the client saw beyond the engine, on a
    request's constant and an output token's share. Nothing measured is 0.
    """
    known = np.isfinite(requests.outside_us)
    basis = np.stack([np.ones(requests.n_requests), requests.output_tokens], axis=1)[known]
    scale = np.maximum(np.linalg.norm(basis, axis=0), 1.0)
    after, _ = nnls(basis / scale, requests.outside_us[known]) if known.any() else (np.zeros(2), 0.0)
    queueing = float(np.mean(requests.arrival_to_queued_us)) if requests.n_requests else 0.0
    return max(0.0, queueing), float(after[0] / scale[0]), float(after[1] / scale[1])


def predicted_us(blocks: Blocks, name: str, n_rows: int, **features: FloatArray) -> FloatArray:
    """Return a block's dot product with features by name (``intercept`` aside), microseconds; 0 without the block.

    Raises
    ------
    CoefficientsError
        The block was fitted to other features.

    Examples
    --------
    >>> ones = Block.of({("intercept", "us"): 1.0}, 3)
    >>> post = fit_between(ones, np.full(3, 250.0), np.full(3, 250.0), what="post", max_rows=3)
    >>> predicted_us({"post": post}, "post", 2).round(3).tolist()
    [250.0, 250.0]
    """
    if name not in blocks:
        return np.zeros(n_rows)
    block = blocks[name]
    known = {"intercept": np.ones(n_rows), **features}
    if unknown := set(block.names) - set(known):
        raise CoefficientsError(
            f"block {name!r} has features {sorted(unknown)}, expected {sorted(known)}; another version"
            " fitted it, fit again"
        )
    columns = np.stack([known[each] for each in block.names], axis=1)
    return np.asarray(columns @ np.array(block.values))


def _column(block: CoefficientBlock, column: int) -> CoefficientBlock:
    parts = block.model_dump()
    return CoefficientBlock.model_validate({name: (part[column],) for name, part in parts.items()})


def _gaps(steps: pa.Table, jobs: pa.Table) -> tuple[FloatArray, FloatArray]:
    """Scheduled requests and the time before them, microseconds, of each step that work was waiting for."""
    asynchronous = dict(zip(jobs["job_id"].to_pylist(), jobs["async_scheduling"].to_pylist(), strict=True))
    frame = steps.select(list(_GAP_COLUMNS)).to_pandas().sort_values(["job_id", "step_id"])
    frame = frame[~frame.job_id.map(asynchronous).fillna(False).astype(bool)]
    before, after = frame.iloc[:-1].reset_index(drop=True), frame.iloc[1:].reset_index(drop=True)
    waiting = before.running_depth - before.num_finished + before.waiting_depth > 0
    rows = (before.job_id == after.job_id) & (before.step_id + 1 == after.step_id) & waiting
    gap_us = (after.t_schedule_start_ns - before.t_output_ns)[rows].to_numpy(dtype=np.float64) / NS_PER_US
    requests = (after.num_prefill_reqs + after.num_decode_reqs)[rows].to_numpy(dtype=np.float64)
    return requests, np.maximum(0.0, gap_us)


_GAP_COLUMNS = (
    "job_id",
    "step_id",
    "t_schedule_start_ns",
    "t_output_ns",
    "num_prefill_reqs",
    "num_decode_reqs",
    "running_depth",
    "waiting_depth",
    "num_finished",
)
