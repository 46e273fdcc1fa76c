"""The routed experts of the busiest rank as one kernel: which tiles it runs, what it reads and multiplies.

vLLM's fused-MoE kernel has tuned tiles for some (experts on a rank, width of an expert's shard, GPU) and runs default
tiles elsewhere: 16 x 32 while a rank holds at least as many experts as the step has tokens, 64 x 64 above (vLLM 0.14,
``get_default_config``). A default tile cannot feed a recent tensor core: every multiprocessor loads its operands from
the cache at 64 bytes a clock, which bounds a square tile of 64 at 2,048 operations a clock, one of 16 x 32 at 683,
whatever the GPU's dense peak is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from srfa.precision import number_bytes
from srfa.ragged import FloatArray
from srfa.roofline import Place, bytes_per_us, flops_per_us
from srfa.routing import TOKENS, RankLoad, busiest_rank
from srfa.units import CYCLES_PER_US_PER_MHZ, FLOPS_PER_US_PER_TFLOPS

_UNTUNED_WORDS: Final = ("default", "untuned")
"""What the job fact ``moe_kernel`` says of a kernel without tuned tiles (``triton-default``); any other is tuned."""
_WIDTH_TAGS: Final = {1.0: ("fp8", "float8", "int8")}
"""What vLLM's file names call weights of this many bytes; narrower ones run other kernels."""
_SMALL_TILE_FLOPS_PER_CLOCK: Final = 683.0
_LARGE_TILE_FLOPS_PER_CLOCK: Final = 2048.0
_LEAST_US: Final = 1e-9  # the logarithm of nothing


def is_tuned(place: Place) -> bool:
    """Return whether the engine has tuned tiles for the expert shape of this configuration on its GPU.

    The job fact ``moe_kernel`` decides where it is known; else the file names of the engine's package do.
    """
    kernel = place.configuration.moe_kernel
    if kernel is not None:
        return not any(word in kernel.lower() for word in _UNTUNED_WORDS)
    configs, model, shard = place.gpu.fused_moe_configs, place.model, place.shard
    if configs is None or not model.is_moe:
        return False
    shape = f"E={shard.experts_on_rank},N={round(_shard_widths(place) / shard.moe_layers)}"
    if shard.stored.experts >= number_bytes(model, place.configuration.dtype):
        return shape in configs.names
    width = _WIDTH_TAGS.get(shard.stored.experts, ())
    return any(name.startswith(f"{shape},dtype={tag}") for name in configs.names for tag in width)


def expert_loads(place: Place) -> FloatArray:
    """Return the experts' memory and compute time over :data:`srfa.routing.TOKENS`, log(us), shape ``(2, n_tokens)``.

    Both grow with the tokens: where a change of tile would make a larger step cheaper, the smaller one's time stands.
    """
    model, configuration, shard = place.model, place.configuration, place.shard
    if not model.is_moe:
        return np.zeros((2, len(TOKENS)))
    load = busiest_rank(
        configuration.moe_routing, model.num_experts, model.num_experts_per_tok, configuration.expert_parallel_size
    )
    moved = load.activated * shard.expert_bytes + load.pairs * _pair_bytes(place)
    times = np.array([moved / bytes_per_us(place), 2.0 * shard.expert_parameters * _row_us(place, load)])
    return np.asarray(np.log(np.maximum(np.maximum.accumulate(times, axis=1), _LEAST_US)))


def _row_us(place: Place, load: RankLoad) -> FloatArray:
    """Time of the rows to multiply, for one operation a row: rows in tiles over what the tile can reach."""
    peak = flops_per_us(place)
    if place.gpu.datasheet.kind == "cpu":
        return np.asarray(load.pairs / peak)
    if is_tuned(place):
        return np.asarray(load.small_rows / peak)
    sheet = place.gpu.datasheet
    narrowing = peak / (sheet.bf16_tflops * FLOPS_PER_US_PER_TFLOPS)  # half the bytes an operand, twice the operations
    clock = sheet.sm_count * sheet.boost_clock_mhz * CYCLES_PER_US_PER_MHZ * narrowing
    small = load.small_rows / min(peak, clock * _SMALL_TILE_FLOPS_PER_CLOCK)
    large = load.large_rows / min(peak, clock * _LARGE_TILE_FLOPS_PER_CLOCK)
    return np.asarray(np.where(place.shard.experts_on_rank >= TOKENS, small, large))


def _pair_bytes(place: Place) -> float:
    """Activations that a token moves through one expert's matrices on this GPU, over all MoE layers."""
    hidden = place.model.hidden_size * place.shard.moe_layers
    return (2.0 * hidden + 3.0 * _shard_widths(place)) * number_bytes(place.model, place.configuration.dtype)


def _shard_widths(place: Place) -> float:
    """Width of an expert's shard, summed over the MoE layers."""
    matrices = 3 if place.model.mlp_gated else 2
    return place.shard.expert_parameters / (matrices * place.model.hidden_size)
