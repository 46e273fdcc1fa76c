"""The all-reduce of tensor parallelism on this machine: all GPUs by NCCL, or two processes by gloo over loopback.

A collective waits for its peers, so its time is the GPU's own by events, and on a CPU wall time: CPU time would leave
the waiting out.
"""

import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srfa.vllm.probe import Device, Kernel

_HOST = "127.0.0.1"
_SMALL_BYTES = 8 * 2**10
"""What one decode step of a model of width 4096 reduces a sequence and layer, in 16 bits."""
_LARGE_BYTES = 64 * 2**20
_CALLS = {_SMALL_BYTES: 20, _LARGE_BYTES: 1}
"""Calls within one reading of the clock."""
_WARM_UP = 3
_MOST_SAMPLES = 1000
_START_S = 120.0
"""Within this time the processes have started and met, or are given up."""
_RESULT = "samples"
_NS_PER_S = 1_000_000_000


class UnmeasuredError(RuntimeError):
    """What was to be measured cannot be on this machine; the text is the reason."""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Times of single calls in ns.

    Parameters
    ----------
    ranks
        Processes that took part.
    small_ns, large_ns
        Samples for 8 KiB and for 64 MiB a rank.
    """

    ranks: int
    small_ns: tuple[float, ...]
    large_ns: tuple[float, ...]

    def ring_bytes(self) -> float:
        """Return what one rank sends (and receives) of the large message in a ring: ``2 (n - 1) / n`` of it."""
        return 2.0 * (self.ranks - 1) / self.ranks * _LARGE_BYTES


def measure_allreduce(device: Device, seconds: float) -> AllReduce:
    """Start the processes, measure for about ``seconds`` and end them.

    Raises
    ------
    UnmeasuredError
        There is one GPU only, PyTorch lacks the backend, or the processes failed or did not end in time.
    """
    backend, ranks = _backend(device)
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    dtype = str(device.dtype).removeprefix("torch.")
    arguments = (ranks, store.port, backend, dtype, seconds)
    context = mp.spawn(_run_rank, arguments, nprocs=ranks, join=False, daemon=True)
    _join(context, seconds + _START_S)
    small, large = json.loads(store.get(_RESULT))
    return AllReduce(ranks, tuple(small), tuple(large))


def _backend(device: Device) -> tuple[str, int]:
    if not dist.is_available():
        raise UnmeasuredError("this PyTorch is built without torch.distributed")
    if device.kind == "cpu":
        if not dist.is_gloo_available():
            raise UnmeasuredError("this PyTorch is built without gloo")
        return "gloo", 2
    if torch.cuda.device_count() < 2:
        raise UnmeasuredError("one GPU is visible; an all-reduce needs two")
    if not dist.is_nccl_available():
        raise UnmeasuredError("this PyTorch is built without NCCL")
    return "nccl", torch.cuda.device_count()


def _join(context: mp.ProcessContext, timeout_s: float) -> None:
    """Wait for the processes; leave none behind."""
    end = time.monotonic() + timeout_s
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                raise UnmeasuredError(f"the processes of the all-reduce have not ended within {timeout_s:g} s")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise UnmeasuredError(f"a process of the all-reduce failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for process in context.processes:
            process.kill()


def _run_rank(rank: int, ranks: int, port: int, backend: str, dtype: str, seconds: float) -> None:
    """Be one of the processes: meet the others, reduce, and as rank 0 leave the samples in the store."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore(_HOST, port, is_master=False, timeout=timedelta(seconds=_START_S))
    if backend == "nccl":
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    device = Device("cuda" if backend == "nccl" else "cpu", getattr(torch, dtype), 1)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=_START_S + seconds)
    )
    try:
        samples = [_samples_ns(device, store, size, seconds / len(_CALLS)) for size in _CALLS]
        if rank == 0:
            store.set(_RESULT, json.dumps(samples))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _samples_ns(device: Device, store: dist.Store, size_bytes: int, seconds: float) -> list[float]:
    """Return times of one call; rank 0 says how many samples fit, as all ranks have to take equally many."""
    message = torch.zeros(size_bytes // device.dtype.itemsize, device=device.kind, dtype=device.dtype)
    calls = _CALLS[size_bytes]

    def reduce() -> None:
        dist.all_reduce(message)

    warm_ns = min(_elapsed_ns(device, reduce, calls) for _ in range(_WARM_UP))
    if dist.get_rank() == 0:
        fitting = int(seconds * _NS_PER_S / max(warm_ns, 1.0))
        store.set(f"samples of {size_bytes}", str(min(max(fitting, 2), _MOST_SAMPLES)))
    count = int(store.get(f"samples of {size_bytes}"))
    return [_elapsed_ns(device, reduce, calls) / calls for _ in range(count)]


def _elapsed_ns(device: Device, kernel: Kernel, calls: int) -> float:
    if device.kind == "cuda":
        return device.elapsed_ns(kernel, calls)
    begin = time.perf_counter_ns()
    for _ in range(calls):
        kernel()
    return float(time.perf_counter_ns() - begin)
