"""A step as its operators: datasheet time of what each must move and compute, and counts of what costs extra.

Operators are every GEMM by its own ``(m, n, k)``, attention of each phase, and the routed experts of the busiest rank.
One compiled function serves whole tables and single steps, so that a simulator and a fit see the same numbers.

The operator-wise view is that of Vidur, LLMServingSim and aiconfigurator; the counts are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from srfa.fused_moe import expert_loads, is_tuned
from srfa.observations import Observations
from srfa.operator_kernels import LINEAR, TILE_ROWS, TOTALS_DTYPE, all_steps
from srfa.precision import number_bytes
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, bytes_per_us, flops_per_us, plain_flops_per_us
from srfa.units import BYTES_PER_GIB, BYTES_PER_US_PER_GBPS, CYCLES_PER_US_PER_MHZ

KINDS: Final = ("gemm", "prefill_attention", "decode_attention", "experts", "experts_untuned")
"""Kinds of operators: those of one kind share an efficiency."""
_COMPOSED: Final = "composed"
"""``step_time_method`` of steps put together from kernel measurements: they hold no time of the host."""
_SMALL_KERNELS: Final = 5
"""Kernels of a layer that are no matrix product or attention: two norms, rotary embedding, cache write, activation."""
_ELEMENTWISE_WIDTHS: Final = 10
"""Hidden-size rows a token moves through those kernels in a layer, reads and writes."""
_PADDED_QUERY_ROWS: Final = 32
"""Rows that a decoding request's single query fills up to in an attention kernel that serves prefill beside it."""
_PCIE_LINK_GBPS: Final = 64.0
"""A link between GPUs up to this rate (PCIe 5.0 x16) is no NVLink."""
_PCIE_LATENCY_RATIO: Final = 2.5
"""An all-reduce over PCIe takes about this many times the latency of one over NVLink (NCCL against peer access)."""

GEMM_DTYPE: Final = np.dtype(
    [(name, np.float64) for name in ("weight_us", "row_us", "tile_row_us", "column_tiles", "rows_are_requests")]
)
FACTS_DTYPE: Final = np.dtype(
    [
        (name, np.float64)
        for name in (
            "is_gpu", "sm_count", "layers", "kernels", "small_kernels", "moe_layers",
            "prefill_pair_us", "prefill_kv_us", "decode_pair_us", "mixed_pair_us", "decode_kv_us", "expert_is_tuned",
            "moe_token_us", "cycle_us", "collective_cycles_us", "collective_token_us", "elementwise_token_us",
            "pcie_byte_us", "replicas",
        )
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constants:
    """What is constant of each configuration, as arrays that compiled code can read.

    Parameters
    ----------
    gemms
        Names of the matrix products that any configuration has: the first columns of the operators, in this order.
    gemm_facts
        Records of :data:`GEMM_DTYPE`, shape ``(n_configurations, n_gemms)``; zero where a configuration lacks one.
    facts
        Records of :data:`FACTS_DTYPE`, shape ``(n_configurations,)``.
    loads
        Logarithms of the experts' memory and compute time over :data:`srfa.routing.TOKENS`, shape
        ``(n_configurations, 2, n_tokens)``.
    """

    gemms: tuple[str, ...]
    gemm_facts: NDArray[Any]
    facts: NDArray[Any]
    loads: FloatArray

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of the operator columns: ``gemm.<matrix>``, then the other kinds."""
        return (*(f"gemm.{name}" for name in self.gemms), *KINDS[1:])


@dataclass(frozen=True, slots=True)
class OperatorTimes:
    """Datasheet times of ``n_steps`` steps.

    Parameters
    ----------
    operators
        Names of the columns of the next two.
    memory_us, compute_us
        Bytes over bandwidth and operations over dense rate, shape ``(n_steps, n_operators)``.
    linear
        The counts of :data:`LINEAR`, shape ``(n_steps, n_linear)``.
    """

    operators: tuple[str, ...]
    memory_us: FloatArray
    compute_us: FloatArray
    linear: FloatArray


def kind_of(operator: str) -> int:
    """Return the place in :data:`KINDS` of an operator column.

    >>> kind_of("gemm.qkv"), kind_of("decode_attention")
    (0, 2)
    """
    return KINDS.index(operator.partition(".")[0])


def constants(where: tuple[Place, ...]) -> Constants:
    """Work out what is constant of each configuration."""
    rows = [_gemm_rows(place) for place in where]
    names = tuple(sorted({name for row in rows for name in row}))
    gemm_facts = np.zeros((len(where), len(names)), dtype=GEMM_DTYPE)
    for position, row in enumerate(rows):
        for name, facts in row.items():
            gemm_facts[position, names.index(name)] = facts
    return Constants(
        gemms=names,
        gemm_facts=gemm_facts,
        facts=np.array([_facts(place) for place in where], dtype=FACTS_DTYPE),
        loads=np.array([expert_loads(place) for place in where]),
    )


def step_totals(observations: Observations) -> NDArray[Any]:
    """Sum each step's requests into records of :data:`TOTALS_DTYPE`, shape ``(n_steps,)``."""
    new, context = observations.prefill_new_tokens, observations.prefill_context_tokens
    totals = np.zeros(observations.n_steps, dtype=TOTALS_DTYPE)
    totals["prefill_tokens"] = observations.numbers("prefill_tokens")
    totals["decode_tokens"] = observations.numbers("decode_tokens")
    totals["prefills"] = observations.numbers("num_prefill_reqs")
    totals["decodes"] = observations.numbers("num_decode_reqs")
    totals["prefill_pairs"] = new.sum(new.values * (context.values + 0.5 * new.values))
    totals["prefill_context"] = context.sum()
    totals["decode_context"] = observations.decode_context_tokens.sum()
    fetched = observations.numbers("cpu_offload_bytes")
    configured = np.nan_to_num(observations.numbers("cpu_offload_gb")) * BYTES_PER_GIB
    totals["offloaded_bytes"] = np.where(np.isnan(fetched), configured, fetched)
    methods, method = observations.codes("step_time_method")
    totals["is_measured"] = np.array([name != _COMPOSED for name in methods], dtype=np.float64)[method]
    return totals


def operator_times(totals: NDArray[Any], configuration: IntArray, of: Constants) -> OperatorTimes:
    """Return the datasheet times of every step."""
    n_steps, n_operators = len(totals), len(of.operators)
    memory, compute = np.zeros((n_steps, n_operators)), np.zeros((n_steps, n_operators))
    linear = np.zeros((n_steps, len(LINEAR)))
    all_steps(totals, configuration, (of.gemm_facts, of.facts, of.loads), memory, compute, linear)
    return OperatorTimes(of.operators, memory, compute, linear)


def _gemm_rows(place: Place) -> dict[str, tuple[float, ...]]:
    shard, bandwidth = place.shard, bytes_per_us(place)
    width = 1 if place.gpu.datasheet.kind == "cpu" else TILE_ROWS
    number = number_bytes(place.model, place.configuration.dtype)
    rows: dict[str, tuple[float, ...]] = {}
    for gemm in (*shard.token_gemms, shard.head):
        is_plain = gemm.name in {"router", shard.head.name}
        tiles = -(-gemm.n // width)
        rows[gemm.name] = (
            gemm.parameters * (shard.stored.plain if is_plain else shard.stored.linear) / bandwidth,
            (gemm.n + gemm.k) * gemm.count * number / bandwidth,
            2.0 * tiles * width * gemm.k * gemm.count / (plain_flops_per_us if is_plain else flops_per_us)(place),
            float(tiles),
            float(gemm.name == shard.head.name),
        )
    return rows


def _facts(place: Place) -> tuple[float, ...]:
    model, shard, sheet = place.model, place.shard, place.gpu.datasheet
    bandwidth, peak = bytes_per_us(place), plain_flops_per_us(place)
    number = number_bytes(model, place.configuration.dtype)
    decode_pair_us = _decode_flops_per_pair(place) / peak
    cycle_us = 1.0 / (sheet.boost_clock_mhz * CYCLES_PER_US_PER_MHZ)
    padded_rows = 1.0 if sheet.kind == "cpu" else _PADDED_QUERY_ROWS
    collectives, rows_sent = _collectives(place)
    is_pcie = sheet.link_gbps_per_direction <= _PCIE_LINK_GBPS
    values = {
        "is_gpu": float(sheet.kind != "cpu"),
        "sm_count": float(sheet.sm_count),
        "layers": float(shard.layers),
        "kernels": float(sum(gemm.count for gemm in shard.token_gemms) + 1),
        "small_kernels": float(_SMALL_KERNELS * shard.layers),
        "moe_layers": float(shard.moe_layers),
        "prefill_pair_us": shard.attention_flops_per_pair / peak,
        "prefill_kv_us": shard.kv_bytes_per_token / bandwidth,
        "decode_pair_us": decode_pair_us,
        "mixed_pair_us": padded_rows * decode_pair_us,
        "decode_kv_us": shard.kv_bytes_per_token / bandwidth,
        "expert_is_tuned": float(is_tuned(place)),
        "moe_token_us": 4.0 * model.hidden_size * number * model.num_experts_per_tok * shard.moe_layers / bandwidth,
        "cycle_us": cycle_us,
        "collective_cycles_us": collectives * cycle_us * (_PCIE_LATENCY_RATIO if is_pcie else 1.0),
        "collective_token_us": model.hidden_size
        * number
        * rows_sent
        / (sheet.link_gbps_per_direction * BYTES_PER_US_PER_GBPS),
        "elementwise_token_us": _ELEMENTWISE_WIDTHS * model.hidden_size * number * shard.layers / bandwidth,
        "pcie_byte_us": 1.0 / (sheet.pcie_gbps * BYTES_PER_US_PER_GBPS),
        "replicas": float(place.configuration.data_parallel_size),
    }
    return tuple(values[name] for name in FACTS_DTYPE.names or ())


def _collectives(place: Place) -> tuple[float, float]:
    """Collectives of a step, and the rows of width ``hidden_size`` that one token sends over the link in them all.

    All-reduces after attention, after the MLP and of the embedding send ``2 (n - 1) / n`` rows each (ring). Experts
    shared by data-parallel ranks need a dispatch and a combine: to all ranks where the backend gathers, or to the
    token's experts where whole experts are spread by an all-to-all (DeepEP and its like).
    """
    configuration, shard = place.configuration, place.shard
    tp, dp, ep = (
        configuration.tensor_parallel_size,
        configuration.data_parallel_size,
        configuration.expert_parallel_size,
    )
    reduces = 2 * shard.layers + 1 if tp > 1 else 0
    exchanges = 2 * shard.moe_layers if dp > 1 else 0
    kernel = (configuration.moe_kernel or "").lower()
    is_all_to_all = ep > 1 and ("deepep" in kernel or "all2all" in kernel)
    exchanged = place.model.num_experts_per_tok * (ep - 1) / ep if is_all_to_all else float(dp - 1)
    return float(reduces + exchanges), reduces * 2.0 * (tp - 1) / tp + exchanges * exchanged


def _decode_flops_per_pair(place: Place) -> float:
    """Operations of one decoding token against one cached token; MLA attends its compressed vector."""
    model, shard = place.model, place.shard
    if not model.is_mla:
        return shard.attention_flops_per_pair
    heads = -(-model.num_attention_heads // place.configuration.tensor_parallel_size)
    width = 2 * (model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0)
    return 2.0 * heads * width * model.num_hidden_layers
