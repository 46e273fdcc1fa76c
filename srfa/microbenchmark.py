"""``microbenchmark.json``: what single kernels reach on a GPU; held against its datasheet before it is believed.

``srfa probe`` writes the file; one written by hand needs ``gpu``, ``source``, ``kind``, ``dtype`` and a figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from srfa.errors import CatalogError
from srfa.specs import GpuSpec, Microbenchmark
from srfa.wording import explain

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["FIGURE_UNITS", "Microbenchmark", "doubtful", "impossible", "read_microbenchmark"]

FIGURE_UNITS: Final = {
    "gemm_tflops": "TFLOP/s",
    "weight_stream_tbps": "TB/s",
    "kv_stream_tbps": "TB/s",
    "attention_tflops": "TFLOP/s",
    "kernel_latency_us": "us",
    "allreduce_latency_us": "us",
    "allreduce_gbps": "GB/s",
}
"""Every figure of a microbenchmark, with its unit."""

_MOST_RATIO: Final = 1.05
_LEAST_RATIO: Final = 0.05
_REDUCED_IN_SWITCH: Final = 2.0
"""NVSwitch adds up on the way (NVLink SHARP): a rank sends the message once, where a ring sends it nearly twice."""


@dataclass(frozen=True, slots=True)
class _Share:
    """A figure as a share of the peak it cannot exceed."""

    figure: str
    value: float
    peak_key: str
    peak: float

    @property
    def ratio(self) -> float:
        return self.value / self.peak

    def __str__(self) -> str:
        return f"{self.figure}={self.value:g} is {100 * self.ratio:.3g} % of datasheet.{self.peak_key}={self.peak:g}"


def read_microbenchmark(path: Path) -> Microbenchmark:
    """Read ``microbenchmark.json``.

    Raises
    ------
    CatalogError
        The file is missing, is not JSON, has an unknown, missing or impossible value, or holds no figure at all; each
        finding names file, key, value and remedy.
    """
    try:
        measured = Microbenchmark.model_validate_json(path.read_text(encoding="utf-8"), strict=True)
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: cannot be read: {error}; make one with 'srfa probe --out {path}'") from error
    except ValidationError as error:
        findings = [_finding(item) for item in error.errors()]
        raise CatalogError("\n".join(f"{path}: {finding}" for finding in findings)) from error
    if all(getattr(measured, figure) is None for figure in FIGURE_UNITS):
        raise CatalogError(f"{path}: holds no figure; give at least one of {', '.join(FIGURE_UNITS)}, or measure again")
    return measured


def impossible(measured: Microbenchmark, gpu: GpuSpec) -> list[str]:
    """Return why these cannot be figures of ``gpu``, each with key, value and remedy; empty where they can be.

    A rate more than 5 % above its peak is of another GPU, or the peak of another unit. Under 5 % of the peak on a GPU
    means that something else was measured; on a CPU that is :func:`doubtful` only.
    """
    sheet = gpu.datasheet
    if measured.kind != sheet.kind:
        return [f"kind={measured.kind!r} but {gpu.name} is {sheet.kind!r}; name the GPU that was measured as 'gpu'"]
    findings = [
        *_other_threads(measured, gpu),
        *(_too_fast(share, gpu) for share in _shares(measured, gpu) if _is_high(share)),
    ]
    if measured.kind == "cuda":
        findings += [_too_slow(share) for share in _low(measured, gpu)]
    return findings


def doubtful(measured: Microbenchmark, gpu: GpuSpec) -> list[str]:
    """Return what to distrust in possible figures: rates under 5 % of a CPU profile's, and the notes of the probe."""
    low = [_too_slow(share) for share in _low(measured, gpu)] if measured.kind == "cpu" else []
    return low + [f"{figure}: {note}" for figure, note in measured.notes.items()]


def _shares(measured: Microbenchmark, gpu: GpuSpec) -> Iterator[_Share]:
    sheet = gpu.datasheet
    half = "fp16_tflops" if measured.dtype == "float16" and sheet.fp16_tflops else "bf16_tflops"
    peaks = {
        "gemm_tflops": (half, 1.0),
        "attention_tflops": (half, 1.0),
        "weight_stream_tbps": ("memory_bandwidth_tbps", 1.0),
        "kv_stream_tbps": ("memory_bandwidth_tbps", 1.0),
    }
    if sheet.kind == "cuda":  # a CPU profile has no link: its figure is nominal
        peaks["allreduce_gbps"] = ("link_gbps_per_direction", _REDUCED_IN_SWITCH)
    for figure, (key, times) in peaks.items():
        value = getattr(measured, figure)
        if value is not None:
            yield _Share(figure, value, key, times * getattr(sheet, key))


def _low(measured: Microbenchmark, gpu: GpuSpec) -> Iterator[_Share]:
    """Yield what is under 5 %; in float32 a GPU has no tensor cores, and its datasheet's peak says nothing."""
    without_peak = {"gemm_tflops", "attention_tflops"} if (measured.kind, measured.dtype) == ("cuda", "float32") else ()
    for share in _shares(measured, gpu):
        if share.ratio < _LEAST_RATIO and share.figure not in without_peak:
            yield share


def _is_high(share: _Share) -> bool:
    return share.ratio > _MOST_RATIO


def _too_fast(share: _Share, gpu: GpuSpec) -> str:
    return (
        f"{share}: more than there is; another GPU than {gpu.name} was measured (name it as 'gpu'), "
        "the figure is with sparsity or in another unit, or the datasheet's is wrong"
    )


def _too_slow(share: _Share) -> str:
    return f"{share}: suspiciously little; measure again with nothing else running, or name the GPU that was measured"


def _other_threads(measured: Microbenchmark, gpu: GpuSpec) -> Iterator[str]:
    threads = gpu.datasheet.omp_threads
    if threads and measured.threads and measured.threads != threads:
        yield f"threads={measured.threads} but {gpu.name} has {threads}; measure with OMP_NUM_THREADS={threads}"


def _finding(item: ErrorDetails) -> str:
    if item["type"] == "json_invalid":
        return f"not JSON: {item['ctx']['error']}; write it with 'srfa probe'"
    return explain(item, Microbenchmark)
