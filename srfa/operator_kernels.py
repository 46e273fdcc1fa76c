"""Compiled: one step's operators from its totals and its configuration's constants.

Every figure grows with every total, so that a prediction with positive coefficients is monotone in every load.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from srfa.compiled import compiled
from srfa.ragged import FloatArray, IntArray
from srfa.routing import TOKENS


class StepTotals(NamedTuple):
    """What a step is to the model: sums over its requests.

    Parameters
    ----------
    prefill_pairs
        Sum of ``new x context + new^2 / 2`` over the prefills: pairs of a token and one it attends.
    prefill_context, decode_context
        Tokens computed before this step: of the prefills, and of the decoding requests with the one of this step.
    offloaded_bytes
        Weights that this step fetches over PCIe.
    is_measured
        1 where the time includes the host's, 0 where the step was put together from kernel measurements.
    """

    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    prefills: float = 0.0
    decodes: float = 0.0
    prefill_pairs: float = 0.0
    prefill_context: float = 0.0
    decode_context: float = 0.0
    offloaded_bytes: float = 0.0
    is_measured: float = 1.0


TOTALS_DTYPE: Final = np.dtype([(name, np.float64) for name in StepTotals._fields])
"""The same as a record, for tables of steps."""

LINEAR: Final = (
    ("kernel_latency", "us of one clock cycle a kernel"),
    ("moe_latency", "us of one clock cycle a MoE layer"),
    ("collective_latency", "us of one clock cycle a collective"),
    ("moe_traffic", "us at the memory's bandwidth"),
    ("collective_traffic", "us at the link's bandwidth"),
    ("elementwise_traffic", "us at the memory's bandwidth"),
    ("offload_traffic", "us at the PCIe bandwidth"),
    ("host_layer", "layer"),
    ("host_step", "step"),
    ("host_request", "request"),
)
"""Names and units of the terms outside the rooflines, in the order of their columns."""
(
    _KERNEL, _MOE, _COLLECTIVE, _MOE_TRAFFIC, _COLLECTIVE_TRAFFIC, _ELEMENTWISE, _OFFLOAD,
    _HOST_LAYER, _HOST_STEP, _HOST_REQUEST,
) = range(len(LINEAR))  # fmt: skip
TILE_ROWS: Final = 128
_SMALL_TILE_ROWS: Final = 64
_LOG_TOKENS: Final = np.log(TOKENS)
_N_TOKENS: Final = len(TOKENS)


@compiled
def _interpolated(log_tokens: float, table: FloatArray) -> float:
    """Read a log-log table; beyond its end the last slope is one: twice the tokens, twice the time."""
    low, high = 0, _N_TOKENS - 1
    if log_tokens >= _LOG_TOKENS[high]:
        return float(np.exp(table[high] + log_tokens - _LOG_TOKENS[high]))
    while high - low > 1:
        middle = (low + high) // 2
        if _LOG_TOKENS[middle] <= log_tokens:
            low = middle
        else:
            high = middle
    share = (log_tokens - _LOG_TOKENS[low]) / (_LOG_TOKENS[high] - _LOG_TOKENS[low])
    return float(np.exp(table[low] + share * (table[high] - table[low])))


@compiled
def _tiled_us(rows: float, tile_rows: float, gemm: Any, sm_count: float) -> float:
    """Time of a product in tiles of ``tile_rows`` x 128: whole tiles, and waves over the multiprocessors.

    A last wave that fills few of them costs the power 3/4 of what it wastes: kernels split their inner dimension then.
    """
    row_tiles = np.ceil(rows / tile_rows)
    waves = row_tiles * gemm.column_tiles / sm_count
    waste = np.sqrt(np.ceil(waves) / waves)
    return float(row_tiles * tile_rows * gemm.tile_row_us * waste * np.sqrt(waste))


@compiled
def _gemm_us(rows: float, gemm: Any, fact: Any) -> float:
    """Compute time of a product: the better of two tile heights; on a CPU there are no tiles."""
    if fact.is_gpu == 0.0:
        return float(rows * gemm.tile_row_us)
    tall = _tiled_us(rows, float(TILE_ROWS), gemm, fact.sm_count)
    return float(min(tall, _tiled_us(rows, float(_SMALL_TILE_ROWS), gemm, fact.sm_count)))


@compiled
def _gemms(total: Any, gemms: Any, fact: Any, memory: FloatArray, compute: FloatArray) -> None:
    tokens, requests = total.prefill_tokens + total.decode_tokens, total.prefills + total.decodes
    for column in range(gemms.shape[0]):
        gemm = gemms[column]
        if gemm.weight_us > 0.0:
            rows = max(requests if gemm.rows_are_requests > 0.0 else tokens, 1.0)
            memory[column] = gemm.weight_us + rows * gemm.row_us
            compute[column] = _gemm_us(rows, gemm, fact)


@compiled
def _attention(total: Any, fact: Any, at: int, memory: FloatArray, compute: FloatArray) -> float:
    """Fill in attention of both phases; return its kernels. One that serves both pads a decoding request's query."""
    kernels = 0.0
    if total.prefills > 0.0:
        memory[at] = (total.prefill_context + total.prefill_tokens) * fact.prefill_kv_us
        compute[at] = total.prefill_pairs * fact.prefill_pair_us
        kernels += fact.layers
    if total.decodes > 0.0:
        memory[at + 1] = total.decode_context * fact.decode_kv_us
        compute[at + 1] = total.decode_context * (fact.mixed_pair_us if total.prefills > 0.0 else fact.decode_pair_us)
        kernels += fact.layers
    return float(kernels)


@compiled
def one_step(total: Any, constants: Any, memory: FloatArray, compute: FloatArray, linear: FloatArray) -> None:
    """Fill in the operators of one step; the three arrays come in as zeros."""
    gemms, fact, loads = constants
    n_gemms, tokens = gemms.shape[0], total.prefill_tokens + total.decode_tokens
    _gemms(total, gemms, fact, memory, compute)
    kernels = fact.kernels + _attention(total, fact, n_gemms, memory, compute)
    if fact.moe_layers > 0.0:
        column = n_gemms + (2 if fact.expert_is_tuned > 0.0 else 3)
        routed = np.log(max(tokens, 1.0) * fact.replicas)
        memory[column], compute[column] = _interpolated(routed, loads[0]), _interpolated(routed, loads[1])
        linear[_MOE] = fact.moe_layers * fact.cycle_us
        linear[_MOE_TRAFFIC] = tokens * fact.replicas * fact.moe_token_us
    measured = total.is_measured
    linear[_KERNEL] = (kernels + measured * fact.small_kernels) * fact.cycle_us
    linear[_COLLECTIVE] = fact.collective_cycles_us
    linear[_COLLECTIVE_TRAFFIC] = tokens * fact.collective_token_us
    linear[_ELEMENTWISE] = measured * tokens * fact.elementwise_token_us
    linear[_OFFLOAD] = total.offloaded_bytes * fact.pcie_byte_us
    linear[_HOST_LAYER] = measured * fact.layers
    linear[_HOST_STEP] = measured
    linear[_HOST_REQUEST] = measured * (total.prefills + total.decodes)


@compiled
def all_steps(
    totals: NDArray[Any],
    configuration: IntArray,
    constants: tuple[NDArray[Any], NDArray[Any], FloatArray],
    memory: FloatArray,
    compute: FloatArray,
    linear: FloatArray,
) -> None:
    """Fill in the operators of every step; the three last arrays come in as zeros."""
    gemm_facts, facts, loads = constants
    for row in range(totals.shape[0]):
        at = configuration[row]
        one_step(totals[row], (gemm_facts[at], facts[at], loads[at]), memory[row], compute[row], linear[row])
