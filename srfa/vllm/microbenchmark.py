"""What a new GPU (or CPU) reaches in the kernels of a forward pass, measured in a minute.

``python -m srfa.vllm.microbenchmark --out microbenchmark.json [--device auto|cpu|cuda] [--seconds 60]`` runs in the
engine's interpreter, as the :mod:`probe <srfa.vllm.probe>` does, and is timed like it: CPU time of the process per
thread on a CPU, events on a GPU. Rates are the best of many repeats, latencies the median; ``spread_ratio`` says how
far the repeats lie apart, so that a busy machine shows.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from srfa.vllm import kernels
from srfa.vllm.collective import AllReduce, measure_allreduce
from srfa.vllm.probe import Case, Device, device_name, device_named, samples_ns, write_document

SCHEMA_VERSION = 1
FIGURES = (
    "gemm_tflops",
    "weight_stream_tbps",
    "kv_stream_tbps",
    "attention_tflops",
    "kernel_latency_us",
    "allreduce_latency_us",
    "allreduce_gbps",
)
_PER_NS = {"tflops": 1000.0, "tbps": 1000.0, "gbps": 1.0}
"""A rate of one in this unit does this many operations, or moves this many bytes, in a nanosecond."""
_NS_PER_US = 1000.0
_SHARES = {
    "gemm_tflops": 0.2,
    "weight_stream_tbps": 0.25,
    "kv_stream_tbps": 0.15,
    "attention_tflops": 0.2,
    "kernel_latency_us": 0.05,
    "allreduce": 0.15,
}
"""How the time is divided."""
_NOISY_RATIO = 0.1
"""A spread above this says that the machine was busy."""
_SIGMA_OF_MAD = 1.4826
_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
_CASES: dict[str, Callable[[Device], list[Case]]] = {
    "gemm_tflops": kernels.gemm_cases,
    "weight_stream_tbps": kernels.weight_stream_cases,
    "kv_stream_tbps": kernels.kv_stream_cases,
    "attention_tflops": kernels.attention_cases,
    "kernel_latency_us": kernels.tiny_cases,
}


@dataclass(frozen=True, slots=True)
class Findings:
    """Figures, their curves and spreads as they are found, and why one was not."""

    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(FIGURES))
    spread_ratio: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, figure: str, samples: dict[str, list[float]], amounts: dict[str, float]) -> None:
        """Take the samples (ns a call) of each case and the amount one call of it does or moves."""
        if figure.endswith("_us"):
            curve = {name: median(times) / _NS_PER_US for name, times in samples.items()}
            best = min(curve, key=lambda name: curve[name])
        else:
            unit = _PER_NS[figure.rpartition("_")[2]]
            curve = {name: amounts[name] / min(times) / unit for name, times in samples.items()}
            best = max(curve, key=lambda name: curve[name])
        self.curves[figure] = {name: _rounded(value) for name, value in curve.items()}
        self.values[figure] = self.curves[figure][best]
        self.spread_ratio[figure] = _rounded(spread_ratio(samples[best]))

    def miss(self, figure: str, error: Exception) -> None:
        """Say why a figure was not measured."""
        self.notes[figure] = f"not measured: {str(error).strip().splitlines()[0]}"


def spread_ratio(samples: Sequence[float]) -> float:
    """Return the robust coefficient of variation: 1.4826 times the median absolute deviation, over the median.

    Examples
    --------
    >>> spread_ratio([1.0, 1.0, 1.0, 50.0])
    0.0
    """
    middle = median(samples)
    return _SIGMA_OF_MAD * median(abs(sample - middle) for sample in samples) / middle


def measure(device: Device, seconds: float, *, gpu: str = "") -> dict[str, Any]:
    """Return the document ``microbenchmark.json`` holds; takes about ``seconds`` seconds and the start of processes.

    Parameters
    ----------
    gpu
        What the device is called in ``hardware/``; the vendor's name where it is empty.
    """
    found = Findings()
    for figure, make in _CASES.items():
        try:
            _measure_cases(found, figure, device, make(device), _SHARES[figure] * seconds)
        except RuntimeError as error:
            found.miss(figure, error)
    try:
        _add_allreduce(found, measure_allreduce(device, _SHARES["allreduce"] * seconds))
    except RuntimeError as error:
        found.miss("allreduce_latency_us", error)
        found.miss("allreduce_gbps", error)
    return _document(found, device, gpu or device_name(device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the figures; return the exit status."""
    options = _parser().parse_args(arguments)
    kind = options.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "sees no CUDA device" if built else "is built without CUDA"
        sys.stderr.write(f"--device cuda: PyTorch {torch.__version__} of {sys.executable} {reason}; use --device cpu\n")
        return 2
    device = device_named(kind, options.dtype or _DTYPES[kind])
    write_document(measure(device, options.seconds, gpu=options.gpu), options.out)
    return 0


def _measure_cases(found: Findings, figure: str, device: Device, cases: Sequence[Case], seconds: float) -> None:
    samples = {case.name: samples_ns(device, case.kernel, seconds / len(cases)) for case in cases}
    found.add(figure, samples, {case.name: case.amount for case in cases})


def _add_allreduce(found: Findings, measured: AllReduce) -> None:
    small, large = f"{measured.ranks} ranks, 8 KiB", f"{measured.ranks} ranks, 64 MiB"
    found.add("allreduce_latency_us", {small: list(measured.small_ns)}, {})
    found.add("allreduce_gbps", {large: list(measured.large_ns)}, {large: measured.ring_bytes()})


def _document(found: Findings, device: Device, gpu: str) -> dict[str, Any]:
    dtype, cuda, name = str(device.dtype).removeprefix("torch."), torch.version.cuda, device_name(device)
    software = f"torch {torch.__version__}" + (f", CUDA {cuda}" if cuda else "")
    where = f"{name}, {dtype}" + (f", {device.threads} thread(s)" if device.kind == "cpu" else "")
    noisy = {figure: ratio for figure, ratio in found.spread_ratio.items() if ratio > _NOISY_RATIO}
    noise = {
        figure: f"repeats spread by {ratio:.0%}: measure again on an idle machine" for figure, ratio in noisy.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "gpu": gpu,
        "source": f"Measured {datetime.now(UTC):%Y-%m-%d} by python -m srfa.vllm.microbenchmark: {where}, {software}",
        "kind": device.kind,
        "device_name": name,
        "dtype": dtype,
        "threads": device.threads,
        "torch_version": torch.__version__,
        "cuda_version": cuda,
        **found.values,
        "spread_ratio": found.spread_ratio,
        "curves": found.curves,
        "notes": {**found.notes, **noise},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srfa.vllm.microbenchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file the figures are written to")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32 on a CPU, else bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--gpu", default="", help="its name in hardware/, where that is not the vendor's")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
