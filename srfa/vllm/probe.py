"""What this machine can do under a profile's environment: matrix rate, streaming bandwidth, clock.

``python -m srfa.vllm.probe --out probe.json [--seconds 6]`` runs in the engine's interpreter, with the engine's
environment variables and on its cores, so that what restricts the engine (``ONEDNN_MAX_CPU_ISA``) restricts the probe.
Both figures are the best of many repeats: they bound what the engine can reach, and the speed-of-light gate divides by
them. On a CPU time is the process's CPU time per thread, which a busy neighbour does not lengthen.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCHEMA_VERSION = 1
_FLOPS_PER_NS_PER_TFLOPS = 1000.0
_BYTES_PER_NS_PER_TBPS = 1000.0
_NS_PER_MS = 1000000.0
_KHZ_PER_MHZ = 1000.0
_MIB = 2**20
_GIB = 2**30
_GEMM_SHAPES = {
    "cpu": ((512, 512, 512), (512, 3072, 512), (512, 512, 1536), (1024, 1024, 1024)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (4096, 14336, 4096)),
}
"""Rows, columns, inner width; on a CPU those of small models, where nothing is big enough for a better rate."""
_READ_MIB = {"cpu": (1, 4, 16, 64, 256), "cuda": (1024, 4096)}
"""From what a large L2 holds to DRAM: the weights of a tiny model are read from cache."""
_SAMPLE_NS = 2000000
"""Short kernels are repeated within one reading of the clock until it has run this long."""

Kernel = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one size, and what a single call of it moves or computes (bytes or floating-point operations)."""

    name: str
    kernel: Kernel
    amount: float


@dataclass(frozen=True, slots=True)
class Device:
    """Where the probe runs and how it is timed there.

    Parameters
    ----------
    kind
        ``cpu`` or ``cuda``.
    dtype
        Type of the matrices.
    threads
        Threads the kernels use; 1 on a GPU.
    """

    kind: str
    dtype: torch.dtype
    threads: int

    def elapsed_ns(self, kernel: Kernel, calls: int) -> float:
        """Return the time of ``calls`` calls in ns: CPU time per thread, or the GPU's own by events."""
        if self.kind == "cuda":
            return _cuda_elapsed_ns(kernel, calls)
        begin = time.process_time_ns()
        for _ in range(calls):
            kernel()
        return (time.process_time_ns() - begin) / self.threads


def best_rate(device: Device, cases: Sequence[Case], seconds: float) -> dict[str, float]:
    """Return the best rate of each case, in its amount a ns, sharing ``seconds`` of wall time equally.

    A case always runs at least twice after its warm-up, however little time there is.
    """
    return {case.name: _best_of(device, case, seconds / len(cases)) for case in cases}


def matmul_cases(device: Device) -> list[Case]:
    """Return the dense matrix products to try, ``2 M N K`` operations each, by the library the engine uses.

    On a CPU vLLM multiplies with oneDNN, which PyTorch's own ``mm`` does not always call: it is asked for by name.
    Where it has no kernel for a type (bfloat16 before AVX-512), ``mm`` is what remains.
    """
    cases = []
    for m, n, k in _GEMM_SHAPES[device.kind]:
        x, weight = (torch.randn(rows, k, device=device.kind).to(device.dtype) for rows in (m, n))
        kernels = product_kernels(device, x, weight)
        cases += [Case(f"{name} {m}x{n}x{k}", kernel, 2.0 * m * n * k) for name, kernel in kernels.items()]
    return cases


def product_kernels(device: Device, x: torch.Tensor, weight: torch.Tensor) -> dict[str, Kernel]:
    """Return the ways the engine's libraries have to multiply ``x`` (m, k) by the transpose of ``weight`` (n, k)."""
    onednn = _onednn_kernels(x, weight) if device.kind == "cpu" else {}
    return onednn or _mm_kernels(x, weight)


def read_cases(device: Device) -> list[Case]:
    """Return the streaming reads to try: sums and matrix-vector products of each size."""
    return [case for mib in _READ_MIB[device.kind] for case in _reads_of(device, mib)]


def measure(device: Device, seconds: float) -> dict[str, Any]:
    """Return the document ``probe.json`` holds; takes about ``seconds`` seconds.

    Returns
    -------
    dict
        ``matmul_tflops`` and ``memory_bandwidth_tbps`` are the best of all kernels and sizes; ``rates`` has each.
        ``bf16_tflops`` repeats the matrix rate under the datasheet's name, in the type that ``dtype`` says.
    """
    matmul = _in_unit(best_rate(device, matmul_cases(device), seconds / 2), _FLOPS_PER_NS_PER_TFLOPS)
    reads = _in_unit(best_rate(device, read_cases(device), seconds / 2), _BYTES_PER_NS_PER_TBPS)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": device.kind,
        "dtype": str(device.dtype).removeprefix("torch."),
        "matmul_tflops": max(matmul.values()),
        "bf16_tflops": max(matmul.values()),
        "memory_bandwidth_tbps": max(reads.values()),
        "threads": device.threads,
        "torch_version": torch.__version__,
        **(_cpu_identity() if device.kind == "cpu" else _cuda_identity()),
        "rates": {"matmul_tflops": matmul, "memory_bandwidth_tbps": reads},
    }


def samples_ns(device: Device, kernel: Kernel, seconds: float) -> list[float]:
    """Return the time of one call in ns, once a reading of the clock, for ``seconds``; at least two after a warm-up."""
    end = time.monotonic() + seconds
    kernel()
    once_ns = max(device.elapsed_ns(kernel, 1), 1.0)
    calls = max(1, int(_SAMPLE_NS / once_ns))
    samples = [device.elapsed_ns(kernel, calls) / calls for _ in range(2)]
    while time.monotonic() < end:
        samples.append(device.elapsed_ns(kernel, calls) / calls)
    return samples


def device_named(kind: str, dtype: str) -> Device:
    """Return the device, with this process on the engine's cores and as many threads as it has."""
    if kind == "cuda":
        return Device(kind, getattr(torch, dtype), 1)
    cores = bound_cores(os.environ.get("VLLM_CPU_OMP_THREADS_BIND", ""), sorted(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(cores))))
    return Device(kind, getattr(torch, dtype), torch.get_num_threads())


def device_name(device: Device) -> str:
    """Return what the vendor calls the device: CUDA's name of the GPU, or the CPU's model."""
    return str(torch.cuda.get_device_name(0)) if device.kind == "cuda" else _cpu_fact("model name") or "unknown"


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write JSON under a temporary name and rename it into place."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def bound_cores(environment: str, allowed: Sequence[int]) -> list[int]:
    """Return the cores of the first rank in ``VLLM_CPU_OMP_THREADS_BIND``, or all allowed ones where it names none.

    Examples
    --------
    >>> bound_cores("2-3,0|1", [0, 1, 2, 3]), bound_cores("auto", [0, 1])
    ([0, 2, 3], [0, 1])
    """
    first = environment.partition("|")[0]
    if not first or not set(first) <= set("0123456789,-"):
        return list(allowed)
    ranges = [part.partition("-") for part in first.split(",")]
    named = {core for low, _, high in ranges for core in range(int(low), int(high or low) + 1)}
    return sorted(named & set(allowed)) or list(allowed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the figures; return the exit status."""
    options = _parser().parse_args(arguments)
    write_document(measure(device_named(options.device, options.dtype), options.seconds), options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srfa.vllm.probe", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file the figures are written to")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to measure (s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def _best_of(device: Device, case: Case, seconds: float) -> float:
    return case.amount / min(samples_ns(device, case.kernel, seconds))


def _cuda_elapsed_ns(kernel: Kernel, calls: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        kernel()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * _NS_PER_MS


def _onednn_kernels(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Kernel]:
    """Return oneDNN's linear on plain and on its own blocked tensors; empty where it has none for this type here."""
    try:
        blocked_x, blocked_weight = x.to_mkldnn(), weight.to_mkldnn()
        kernels: dict[str, Kernel] = {
            "onednn": lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""),
            "onednn blocked": lambda: torch._C._nn.mkldnn_linear(blocked_x, blocked_weight, None),
        }
        for kernel in kernels.values():
            kernel()
    except RuntimeError:
        return {}
    return kernels


def _mm_kernels(x: torch.Tensor, weight: torch.Tensor) -> dict[str, Kernel]:
    return {"mm": lambda: torch.mm(x, weight.t())}


def _reads_of(device: Device, mib: int) -> list[Case]:
    width = 1024
    size = mib * _MIB
    matrix = torch.ones(size // (4 * width), width, device=device.kind)
    vector = torch.ones(width, device=device.kind)
    return [
        Case(f"sum {mib} MiB", matrix.sum, size),
        Case(f"max {mib} MiB", matrix.amax, size),
        Case(f"mv {mib} MiB", lambda: torch.mv(matrix, vector), size),
    ]


def _in_unit(rates: dict[str, float], unit: float) -> dict[str, float]:
    return {name: round(rate / unit, 6) for name, rate in rates.items()}


def _cpu_identity() -> dict[str, object]:
    return {
        "cpu_model": _cpu_fact("model name") or "unknown",
        "clock_mhz": float(_cpu_fact("cpu MHz") or 0.0),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB,
    }


def _cpu_fact(key: str) -> str:
    """Return the first value of ``key`` in ``/proc/cpuinfo``, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _cuda_identity() -> dict[str, object]:
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu_name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "sm_count": found.multi_processor_count,
        "clock_mhz": getattr(found, "clock_rate", 0) / _KHZ_PER_MHZ,
        "memory_gib": found.total_memory / _GIB,
    }


if __name__ == "__main__":
    raise SystemExit(main())
