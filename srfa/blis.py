"""The roofline basis of the BLIS simulator and the projection of a fit onto it.

BLIS (inference-sim) predicts ``step = sum(beta_i x basis_i)`` with eleven non-negative coefficients. A nonlinear
estimator has no slot there, so the coefficients are refitted on that basis, and the projection says what it costs.
Source of the basis: inference-sim ``sim/latency/trained_physics_model.go`` and its configuration reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.optimize import nnls

from srfa.catalog import Catalog
from srfa.errors import FitError
from srfa.fit.outside import Blocks, predicted_us
from srfa.metrics import PERCENT
from srfa.observations import Observations
from srfa.ragged import FloatArray
from srfa.roofline import Place, bytes_per_us, flops_per_us, per_step, places, step_work
from srfa.units import NS_PER_US

ALPHAS = (
    ("queueing", "us per request"),
    ("post_decode", "us per request"),
    ("output_token", "us per output token"),
)
BETAS = (
    ("prefill_compute", "dimensionless"),
    ("decode_compute", "dimensionless"),
    ("weights", "dimensionless"),
    ("tp_communication", "dimensionless"),
    ("layer", "us per layer"),
    ("request", "us per request"),
    ("step", "us per step"),
    ("interleaved_moe_layer", "us per MoE layer"),
    ("prefill_kv", "dimensionless"),
    ("decode_kv", "dimensionless"),
    ("ep_dispatch", "dimensionless"),
)
"""Name and unit of each coefficient, in the order BLIS reads them; a dimensionless one multiplies a roofline time."""
_COLLECTIVE_BYTES = 2.0 * 2.0
"""Two bytes an activation, two phases of a ring."""


@dataclass(frozen=True, slots=True)
class BlisProjection:
    """Coefficients for BLIS and what they cost.

    Parameters
    ----------
    alpha_us
        Three, in the order of :data:`ALPHAS`; 0 where nothing was measured.
    beta
        Eleven, in the order of :data:`BETAS`.
    unidentified
        Coefficients whose basis is 0 in every step; they are exported as 0.
    n_steps, estimator_mape_pct, mape_pct
        MAPE on the same steps before and after the projection.
    """

    alpha_us: tuple[float, float, float]
    beta: tuple[float, ...]
    unidentified: tuple[str, ...]
    n_steps: int
    estimator_mape_pct: float
    mape_pct: float


def project(
    observations: Observations, catalog: Catalog, predicted_us: FloatArray, requests: pa.Table | None = None
) -> BlisProjection:
    """Refit non-negative BLIS coefficients to measured step times, relative errors weighted equally.

    Minimises ``sum((basis . beta / measured - 1)^2)`` over ``beta >= 0`` (``scipy.optimize.nnls``).

    Parameters
    ----------
    predicted_us
        The estimator's prediction of the same steps, shape ``(n_steps,)``, to state what the projection costs.
    requests
        The table of requests, for the alphas; without it they are 0.

    Raises
    ------
    FitError
        The solver did not converge.
    """
    basis, measured = blis_basis(observations, catalog), observations.step_time_us
    beta = _non_negative(basis / measured[:, None], np.ones(len(measured)))
    unused = np.flatnonzero(~np.any(basis, axis=0))
    return BlisProjection(
        alpha_us=alpha_us(requests) if requests is not None else (0.0, 0.0, 0.0),
        beta=tuple(map(float, beta)),
        unidentified=tuple(BETAS[position][0] for position in unused),
        n_steps=len(measured),
        estimator_mape_pct=_mape_pct(predicted_us, measured),
        mape_pct=_mape_pct(basis @ beta, measured),
    )


def blis_basis(observations: Observations, catalog: Catalog) -> FloatArray:
    """Return what each beta multiplies, shape ``(n_steps, 11)``: microseconds, or counts for the ``us per`` ones.

    As in BLIS, the head is left out of weights and operations, prefill KV is what is written and decode KV what is
    read, communication is charged at memory bandwidth (its coefficient absorbs the ratio to the link), and a MoE model
    pays either the reduction or the dispatch of its experts.
    """
    where = places(observations, catalog)
    work = step_work(observations, where)
    prefill, decode = observations.numbers("prefill_tokens"), observations.numbers("decode_tokens")
    n_prefill, n_decode = observations.numbers("num_prefill_reqs"), observations.numbers("num_decode_reqs")
    flops, memory = (per_step(observations, where, rate) for rate in (flops_per_us, bytes_per_us))
    head = per_step(observations, where, lambda place: float(place.shard.head.parameters))
    bytes_per_weight = per_step(observations, where, lambda place: place.shard.stored.plain)
    kv_bytes = per_step(observations, where, lambda place: place.shard.kv_bytes_per_token)
    columns = (
        (work.prefill_flops - 2.0 * head * n_prefill) / flops,
        (work.decode_flops - 2.0 * head * n_decode) / flops,
        (work.weight_bytes - head * bytes_per_weight) / memory,
        (prefill + decode) * per_step(observations, where, _all_reduce_bytes) / memory,
        per_step(observations, where, lambda place: float(place.model.num_hidden_layers)),
        n_prefill + n_decode,
        np.ones(observations.n_steps),
        per_step(observations, where, _interleaved_layers),
        prefill * kv_bytes / memory,
        work.decode_kv_bytes / memory + decode * kv_bytes / memory,
        (prefill + decode) * per_step(observations, where, _dispatch_bytes) / memory,
    )
    return np.stack(columns, axis=1)


def alpha_us(requests: pa.Table) -> tuple[float, float, float]:
    """Return the three alphas from the table of requests, microseconds.

    Queueing is the mean of queued minus arrived; the other two fit departed minus finished as a constant and a cost
    per output token, both >= 0. What no request measured is 0.
    """
    arrived, queued = _numbers(requests, "t_arrived_ns"), _numbers(requests, "t_queued_ns")
    finished, departed = _numbers(requests, "t_finished_ns"), _numbers(requests, "t_departed_ns")
    queueing = (queued - arrived) / NS_PER_US
    after = (departed - finished) / NS_PER_US
    known = np.isfinite(after) & np.isfinite(_numbers(requests, "output_tokens"))
    basis = np.stack([np.ones(len(after)), _numbers(requests, "output_tokens")], axis=1)[known]
    per_request, per_token = _non_negative(basis, after[known]) if known.any() else (0.0, 0.0)
    mean = float(np.nanmean(queueing)) if np.isfinite(queueing).any() else 0.0
    return max(0.0, mean), float(per_request), float(per_token)


def fitted_alphas_us(blocks: Blocks, requests: pa.Table | None) -> tuple[float, float, float] | None:
    """Return the three alphas that fitted models of requests say, microseconds; None without such models.

    The first is the hand-over of a prompt of mean length (of no length without the table): BLIS adds the rest of the
    running step itself. The others are the constant after a token's step and an output token's share.

    Raises
    ------
    CoefficientsError
        A block was fitted by another version.
    """
    if not {"alpha", "post", "alpha_token"} <= set(blocks):
        return None
    lengths = np.zeros(1) if requests is None else _numbers(requests, "prompt_tokens")
    mean = np.array([float(np.nanmean(lengths))]) if np.isfinite(lengths).any() else np.zeros(1)
    return (
        float(predicted_us(blocks, "alpha", 1, prompt_tokens=mean)[0]),
        float(predicted_us(blocks, "post", 1)[0]),
        float(predicted_us(blocks, "alpha_token", 1, output_tokens=np.ones(1))[0]),
    )


def _numbers(table: pa.Table, column: str) -> FloatArray:
    return np.asarray(table[column].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _non_negative(basis: FloatArray, target: FloatArray) -> FloatArray:
    """Non-negative least squares with columns scaled to unit length; all-zero columns get 0."""
    scale = np.linalg.norm(basis, axis=0)
    scale[scale == 0] = 1.0
    try:
        solution, _ = nnls(basis / scale, target)
    except RuntimeError as error:
        raise FitError(f"projection onto the BLIS basis did not converge ({error}); give more varied steps") from error
    return np.asarray(solution / scale, dtype=np.float64)


def _mape_pct(predicted_us: FloatArray, measured_us: FloatArray) -> float:
    return float(PERCENT * np.mean(np.abs(predicted_us / measured_us - 1.0)))


def _dispatches(place: Place) -> bool:
    configuration = place.configuration
    spread = configuration.data_parallel_size > 1 or configuration.expert_parallel_size > 1
    return place.model.is_moe and spread


def _all_reduce_bytes(place: Place) -> float:
    """Bytes a token moves in tensor-parallel reductions: attention and MLP of each layer, or dispatch."""
    model, tp = place.model, place.configuration.tensor_parallel_size
    reductions = 2 * model.num_hidden_layers - (model.moe_layers if _dispatches(place) else 0)
    return reductions * model.hidden_size * _COLLECTIVE_BYTES * (tp - 1) / tp


def _dispatch_bytes(place: Place) -> float:
    """Bytes a token moves to and from the experts of other ranks (all-gather family)."""
    if not _dispatches(place):
        return 0.0
    ranks = place.configuration.tensor_parallel_size * place.configuration.data_parallel_size
    moved = 2.0 * place.model.hidden_size * place.shard.stored.plain
    return place.model.moe_layers * moved * (ranks - 1) / ranks


def _interleaved_layers(place: Place) -> float:
    """MoE layers of a model that alternates them with dense ones; models that only start dense do not count."""
    model = place.model
    return float(model.moe_layers) if 0 < model.moe_layers <= model.num_hidden_layers / 2 else 0.0
