"""Is a datasheet plausible? Catches the with-sparsity figure and the wrong unit before they reach a fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from srfa.specs import Calibration, Datasheet, GpuSpec
from srfa.units import CYCLES_PER_US_PER_MHZ, FLOPS_PER_US_PER_TFLOPS

DENSE_FLOPS_PER_CLOCK_PER_SM: Final = {
    "7.0": 1024,
    "7.5": 1024,
    "8.0": 2048,
    "8.6": 1024,
    "8.9": 1024,
    "9.0": 4096,
    "10.0": 8192,
    "10.3": 8192,
    "12.0": 1024,
}
"""Dense 16-bit tensor-core FLOPs a clock and SM, by compute capability. Source: NVIDIA's architecture white papers."""
_GEFORCE: Final = 512
"""The same on GeForce boards from Ampere on, with fp32 accumulation."""
_MOST: Final = max(DENSE_FLOPS_PER_CLOCK_PER_SM.values())
_PEAK_TOLERANCE: Final = 1.2
_NARROW_OVER_BF16: Final = 2.2
"""8-bit rates are twice the 16-bit rate; above this the figure is with sparsity.

GeForce boards halve the 16-bit rate with fp32 accumulation only, so there the limit is twice this.
"""


@dataclass(frozen=True, slots=True)
class _Range:
    """What a figure may be in the unit its name gives, and the likely mistake on either side."""

    low: float
    high: float
    if_low: str
    if_high: str


_CUDA_RANGES: Final = {
    "bf16_tflops": _Range(5, 20_000, "looks like PFLOP/s; multiply by 1000", "looks like GFLOP/s; divide by 1000"),
    "memory_gib": _Range(2, 2_000, "looks like TiB; multiply by 1024", "looks like MiB; divide by 1024"),
    "memory_bandwidth_tbps": _Range(0.05, 40, "give it in TB/s", "looks like GB/s; divide by 1000"),
    "link_gbps_per_direction": _Range(1, 2_000, "looks like TB/s; multiply by 1000", "looks like Gbit/s; divide by 8"),
    "pcie_gbps": _Range(1, 300, "give it in GB/s per direction", "looks like Gbit/s; divide by 8"),
    "sm_count": _Range(4, 1_000, "count streaming multiprocessors", "looks like CUDA cores; count SMs"),
    "boost_clock_mhz": _Range(300, 5_000, "looks like GHz; multiply by 1000", "looks like kHz; divide by 1000"),
}
_CPU_RANGES: Final = {
    "bf16_tflops": _Range(1e-4, 1_000, "give it in TFLOP/s", "looks like GFLOP/s; divide by 1000"),
    "memory_gib": _Range(0.1, 100_000, "give it in GiB", "looks like MiB; divide by 1024"),
    "memory_bandwidth_tbps": _Range(1e-4, 5, "give it in TB/s", "looks like GB/s; divide by 1000"),
    "boost_clock_mhz": _Range(300, 10_000, "looks like GHz; multiply by 1000", "looks like kHz; divide by 1000"),
}


def implausible(gpu: GpuSpec) -> list[str]:
    """Return what is wrong with the figures of a GPU, each with key, value and remedy; empty where nothing is.

    CPU profiles are measured: only the ranges of their units are checked.
    """
    sheet = gpu.datasheet
    ranges = _CPU_RANGES if sheet.kind == "cpu" else _CUDA_RANGES
    findings = [*_out_of_range(sheet, ranges), *_efficiencies(gpu.calibration)]
    if sheet.kind == "cuda":
        findings += [*_above_dense_peak(gpu), *_narrow_rates(gpu)]
    return findings


def dense_peak_tflops(gpu: GpuSpec) -> float:
    """Return the dense 16-bit peak, ``sm_count x clock x FLOPs a clock and SM``, in TFLOP/s.

    An unknown compute capability is given the widest rate known, so that it bounds from above.
    """
    sheet = gpu.datasheet
    per_clock = DENSE_FLOPS_PER_CLOCK_PER_SM.get(sheet.compute_capability or "", _MOST)
    if _is_geforce(gpu) and per_clock == DENSE_FLOPS_PER_CLOCK_PER_SM["8.6"]:
        per_clock = _GEFORCE
    return sheet.sm_count * sheet.boost_clock_mhz * CYCLES_PER_US_PER_MHZ * per_clock / FLOPS_PER_US_PER_TFLOPS


def _out_of_range(sheet: Datasheet, ranges: dict[str, _Range]) -> Iterator[str]:
    for key, allowed in ranges.items():
        value = float(getattr(sheet, key))
        if not allowed.low <= value <= allowed.high:
            remedy = allowed.if_low if value < allowed.low else allowed.if_high
            yield f"datasheet.{key}={value:g} is outside {allowed.low:g} to {allowed.high:g}: {remedy}"


def _above_dense_peak(gpu: GpuSpec) -> Iterator[str]:
    sheet, peak = gpu.datasheet, dense_peak_tflops(gpu)
    if sheet.bf16_tflops > _PEAK_TOLERANCE * peak:
        yield (
            f"datasheet.bf16_tflops={sheet.bf16_tflops:g} looks like the with-sparsity figure; divide by 2: "
            f"{sheet.sm_count} SMs at {sheet.boost_clock_mhz:g} MHz with compute capability "
            f"{sheet.compute_capability} reach {peak:.0f} TFLOP/s dense (or check sm_count and boost_clock_mhz)"
        )


def _is_geforce(gpu: GpuSpec) -> bool:
    return "geforce" in gpu.vendor_name.casefold()


def _narrow_rates(gpu: GpuSpec) -> Iterator[str]:
    sheet = gpu.datasheet
    times = _NARROW_OVER_BF16 * (2 if _is_geforce(gpu) else 1)
    limit = times * sheet.bf16_tflops
    for key in ("fp16_tflops", "fp8_tflops", "int8_tops"):
        value = getattr(sheet, key)
        if value is not None and value > limit:
            yield (
                f"datasheet.{key}={value:g} is more than {times:g} x bf16_tflops={sheet.bf16_tflops:g}: "
                "looks like the with-sparsity figure; divide by 2"
            )


def _efficiencies(calibration: Calibration) -> Iterator[str]:
    for key in ("mfu_prefill", "mfu_decode", "bandwidth_efficiency"):
        value = getattr(calibration, key)
        if value > 1:
            yield f"calibration.{key}={value:g} is above 1: give a share of the peak, between 0 and 1"
