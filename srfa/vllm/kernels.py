"""The kernels of a forward pass in isolation, each with what one call of it computes or moves.

Prefill-like and decode-like matrix products, causal and single-query attention, and an operation too small to take any
time itself. What should come from memory exceeds the caches several times over.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from srfa.vllm.probe import Case, Device, Kernel, product_kernels

_BYTES_PER_KIB = 2**10
_MIB = 2**20
_CACHES = 4
"""What is to be read from memory exceeds the last cache this many times."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big the operands are: large enough to fill the device, small enough for some repeats within seconds.

    Parameters
    ----------
    columns, inner
        ``n`` and ``k`` of a weight matrix of the prefill-like products.
    stream_columns, stream_inner
        The same of the weights that are streamed; as many matrices as exceed the cache.
    heads, head_dim
        Of causal attention.
    kv_heads
        Of single-query attention, one query head for each.
    least_stream_bytes
        What is streamed is at least this much.
    """

    columns: int
    inner: int
    stream_columns: int
    stream_inner: int
    heads: int
    head_dim: int
    kv_heads: int
    least_stream_bytes: int


SIZES = {
    "cpu": Sizes(1024, 1024, 4096, 2048, 8, 64, 8, 256 * _MIB),
    "cuda": Sizes(14336, 4096, 14336, 4096, 32, 128, 8, 1024 * _MIB),
}
PREFILL_ROWS = (128, 512, 1024, 2048, 4096)
DECODE_ROWS = (1, 2, 4, 8, 16)
PROMPTS_TOKENS = (1024, 2048, 4096)
CONTEXTS_TOKENS = (1024, 4096)


def gemm_cases(device: Device) -> list[Case]:
    """Return ``x (m, k)`` times a weight ``(n, k)`` for prefill-like ``m``: ``2 m n k`` operations."""
    sizes = SIZES[device.kind]
    weight = _random(device, sizes.columns, sizes.inner)
    cases = []
    for rows in PREFILL_ROWS:
        amount = 2.0 * rows * sizes.columns * sizes.inner
        kernels = product_kernels(device, _random(device, rows, sizes.inner), weight)
        cases += [Case(f"{name} {rows}x{sizes.columns}x{sizes.inner}", one, amount) for name, one in kernels.items()]
    return cases


def weight_stream_cases(device: Device) -> list[Case]:
    """Return decode-like products with one weight matrix after another, as a forward pass has them: bytes of weights.

    The matrices together exceed the cache, so that each is read from memory whenever its turn comes.
    """
    sizes = SIZES[device.kind]
    bytes_each = sizes.stream_columns * sizes.stream_inner * device.dtype.itemsize
    layers = -(-stream_bytes(device) // bytes_each)
    weights = [_random(device, sizes.stream_columns, sizes.stream_inner) for _ in range(layers)]
    cases = []
    for rows in DECODE_ROWS:
        x = _random(device, rows, sizes.stream_inner)
        by_layer = [product_kernels(device, x, weight) for weight in weights]
        for name in by_layer[0]:
            kernel = _in_turn([kernels[name] for kernels in by_layer])
            cases.append(Case(f"{name} m={rows}", kernel, float(layers * bytes_each)))
    return cases


def kv_stream_cases(device: Device) -> list[Case]:
    """Return attention of one query a sequence over its whole context: bytes of keys and values, ``2 b h L d`` numbers.

    The batch is as large as makes the context of all sequences together exceed the cache.
    """
    sizes = SIZES[device.kind]
    width = sizes.kv_heads * sizes.head_dim
    half = stream_bytes(device) // 2 // device.dtype.itemsize
    batches = [max(half // (length * width), 1) for length in CONTEXTS_TOKENS]
    numbers = max(batch * length for batch, length in zip(batches, CONTEXTS_TOKENS, strict=True)) * width
    keys, values = _random(device, numbers), _random(device, numbers)
    cases = []
    for batch, length in zip(batches, CONTEXTS_TOKENS, strict=True):
        shape = (batch, sizes.kv_heads, length, sizes.head_dim)
        used = batch * length * width
        kernel = _attention(
            _random(device, batch, sizes.kv_heads, 1, sizes.head_dim),
            keys[:used].view(shape),
            values[:used].view(shape),
            causal=False,
        )
        cases.append(Case(f"b={batch} context={length}", kernel, 2.0 * used * device.dtype.itemsize))
    return cases


def attention_cases(device: Device) -> list[Case]:
    """Return causal attention of one prompt of ``n`` tokens: ``2 * 2 h d n^2 / 2`` operations (half is masked)."""
    sizes = SIZES[device.kind]
    cases = []
    for tokens in PROMPTS_TOKENS:
        query, key, value = (_random(device, 1, sizes.heads, tokens, sizes.head_dim) for _ in range(3))
        amount = 2.0 * 2.0 * sizes.heads * sizes.head_dim * tokens**2 / 2.0
        cases.append(Case(f"n={tokens}", _attention(query, key, value, causal=True), amount))
    return cases


def tiny_cases(device: Device) -> list[Case]:
    """Return the addition of one to one number, launched one by one without a graph."""
    number = torch.zeros(1, device=device.kind)
    return [Case("add 1", lambda: number.add_(1.0), 1.0)]


def stream_bytes(device: Device) -> int:
    """Return how much has to be read for it to come from memory, never more than an eighth of the memory."""
    wanted = max(SIZES[device.kind].least_stream_bytes, _CACHES * _cache_bytes(device))
    return min(wanted, _memory_bytes(device) // 8)


def _random(device: Device, *shape: int) -> torch.Tensor:
    """Normal numbers; constants would spare a GPU power and run at a clock that no model reaches."""
    return torch.randn(*shape, device=device.kind, dtype=device.dtype)


def _in_turn(kernels: Sequence[Kernel]) -> Kernel:
    def run() -> None:
        for kernel in kernels:
            kernel()

    return run


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> Kernel:
    return lambda: scaled_dot_product_attention(query, key, value, is_causal=causal)


def _cache_bytes(device: Device) -> int:
    """Return the last cache of the GPU, or of all the cores this process may use; 0 where the system does not say."""
    if device.kind == "cuda":
        return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0))
    caches = {}
    for core in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{core}/cache/index3")
        try:
            kib = (folder / "size").read_text(encoding="utf-8").strip().removesuffix("K")
            caches[(folder / "shared_cpu_list").read_text(encoding="utf-8")] = int(kib) * _BYTES_PER_KIB
        except (OSError, ValueError):
            continue
    return sum(caches.values())


def _memory_bytes(device: Device) -> int:
    if device.kind == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
