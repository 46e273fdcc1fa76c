"""``EngineArgs`` as flags of ``vllm serve``, and the configuration the server resolved them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from srfa.specs import EngineArgs

_RESOLVED_AT: Final[Mapping[str, tuple[str, ...]]] = {
    "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"),
    "data_parallel_size": ("parallel_config", "data_parallel_size"),
    "enable_expert_parallel": ("parallel_config", "enable_expert_parallel"),
    "dtype": ("model_config", "dtype"),
    "quantization": ("model_config", "quantization"),
    "kv_cache_dtype": ("cache_config", "cache_dtype"),
    "max_model_len": ("model_config", "max_model_len"),
    "max_num_seqs": ("scheduler_config", "max_num_seqs"),
    "max_num_batched_tokens": ("scheduler_config", "max_num_batched_tokens"),
    "block_size": ("cache_config", "block_size"),
    "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill"),
    "enable_prefix_caching": ("cache_config", "enable_prefix_caching"),
    "long_prefill_token_threshold": ("scheduler_config", "long_prefill_token_threshold"),
    "watermark": ("scheduler_config", "watermark"),
    "gpu_memory_utilization": ("cache_config", "gpu_memory_utilization"),
    "kv_cache_memory_bytes": ("cache_config", "kv_cache_memory_bytes"),
    "num_gpu_blocks_override": ("cache_config", "num_gpu_blocks_override"),
    "cpu_offload_gb": ("offload_config", "uva", "cpu_offload_gb"),
    "kv_offloading_size": ("cache_config", "kv_offloading_size"),
    "enforce_eager": ("model_config", "enforce_eager"),
    "load_format": ("load_config", "load_format"),
    "scheduling_policy": ("scheduler_config", "policy"),
    "seed": ("model_config", "seed"),
}
"""Where ``/server_info?config_format=json`` of vLLM 0.32 shows what became of an argument."""

_DTYPES: Final = {"half": "float16", "float": "float32"}
_FREE: Final = "auto"
_NOT_SHOWN: Final = "not shown"


class Mismatch(NamedTuple):
    """An argument that the server resolved to something else than was asked for."""

    argument: str
    requested: object
    resolved: object

    def __str__(self) -> str:
        return f"{self.argument}: requested {self.requested!r}, resolved {self.resolved!r}"


def serve_flags(engine: EngineArgs) -> tuple[str, ...]:
    """Return the flags of ``vllm serve``; None is left out, and a boolean is ``--flag`` or ``--no-flag``.

    Examples
    --------
    >>> flags = serve_flags(EngineArgs(max_num_seqs=8, enable_prefix_caching=False))
    >>> flags[flags.index("--max-num-seqs") + 1], "--no-enable-prefix-caching" in flags, "--block-size" in flags
    ('8', True, False)
    """
    flags: list[str] = []
    for name, value in _requested(engine).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return tuple(flags)


def resolved_arguments(vllm_config: Mapping[str, object]) -> dict[str, object]:
    """Return the engine arguments, by vLLM's names, as the server's own configuration shows them.

    Parameters
    ----------
    vllm_config
        ``vllm_config`` of the answer to ``/server_info?config_format=json``. What it does not show is left out.
    """
    shown = {name: _lookup(vllm_config, path) for name, path in _RESOLVED_AT.items()}
    resolved = {name: value for name, value in shown.items() if value is not _NOT_SHOWN}
    return resolved | {"dtype": str(resolved["dtype"]).removeprefix("torch.")} if "dtype" in resolved else resolved


def mismatches(engine: EngineArgs, resolved: Mapping[str, object]) -> tuple[Mismatch, ...]:
    """Return the arguments whose resolved value is not the requested one; None and ``auto`` leave the choice free.

    An argument that is not shown is a mismatch: what cannot be verified must not be recorded as verified.
    """
    pairs = ((name, value, resolved.get(name, _NOT_SHOWN)) for name, value in _requested(engine).items())
    return tuple(
        Mismatch(name, value, found) for name, value, found in pairs if value != _FREE and not _equal(value, found)
    )


def _requested(engine: EngineArgs) -> dict[str, object]:
    return engine.model_dump(exclude_none=True)


def _lookup(config: Mapping[str, object], path: Sequence[str]) -> object:
    value: object = config
    for key in path:
        value = value.get(key, _NOT_SHOWN) if isinstance(value, Mapping) else _NOT_SHOWN
    return value


def _equal(requested: object, resolved: object) -> bool:
    return requested == resolved or _DTYPES.get(str(requested), requested) == resolved
