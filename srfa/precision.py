"""Bytes of a number: what dtypes, quantisation methods and KV-cache dtypes cost, by the names vLLM takes for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from srfa.specs import ModelSpec

DTYPE_BYTES: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
"""Bytes of a number, by the names vLLM takes for ``dtype``."""
_NARROW_KV_BYTES: Final = {
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"), 1.0),
    **dict.fromkeys(("fp8_per_token_head", "int8_per_token_head"), 1.0),
    "int4_per_token_head": 0.5,
    "nvfp4": 0.5625,
}
KV_DTYPE_BYTES: Final[dict[str, float]] = {**DTYPE_BYTES, **_NARROW_KV_BYTES}
"""Bytes of a cached number, scales of a head or token left out."""
KV_CACHE_DTYPES: Final = ("auto", "bfloat16", "float16", *_NARROW_KV_BYTES)
"""What this project knows of vLLM 0.32's values for ``kv_cache_dtype`` (``vllm/config/cache.py``)."""
FP8_METHODS: Final = frozenset(
    {"fp8", "fp8_block", "fp8_static", "fp8_ootb", "fbgemm_fp8", "ptpc_fp8", "compressed-tensors", "modelopt"}
)
"""Methods whose matrices multiply in 8 bits where the weights have 8; the others widen their weights first."""
_BITS_PER_BYTE: Final = 8
_QUANTIZED_BITS: Final = {
    "awq": 4.25,
    "awq_marlin": 4.25,
    "gptq": 4.25,
    "gptq_marlin": 4.25,
    "bitsandbytes": 4.25,
    "mxfp4": 4.25,
    "modelopt_fp4": 4.5,
    "nvfp4": 4.5,
    "int4_wo": 4.25,
    "w4a16": 4.25,
    "w4afp8": 4.25,
    "w4a16_mxfp4": 4.25,
}
"""Bits a weight takes with its share of a group's scales: 32 bits for 128 weights, or 8 bits for 32 (16)."""
_OTHER_QUANTIZED_BITS: Final = 8.0
_OTHER_METHODS: Final = frozenset({
    "int8", "w8a8", "experts_int8", "int8_wo", "sq", "fp8_static", "fp8_ootb",
    "fp8_block", "modelopt_mxfp8", "modelopt_mixed", "deepseek_v4_fp8", "fp8_per_tensor",
    "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token", "mxfp8", "fp_quant",
    "gpt_oss_mxfp4", "petit_nvfp4", "marlin", "gguf", "quark", "torchao", "humming", "moe_wna16", "inc", "online",
    "auto-round", "rtn", "hqq", "bitblas", "aqlm", "squeezellm", "deepspeedfp", "qqq", "tpu_int8", "neuron_quant",
    "ipex",
})  # fmt: skip
"""Further methods of vLLM up to 0.32 (``vllm/model_executor/layers/quantization``) and of aiconfigurator's tables: read
by their usual 8 bits."""
_METHOD_FAMILIES: Final = ("gptq", "awq", "auto_gptq", "auto_awq", "cpu_gptq", "cpu_awq")
_EXPERTS_ONLY: Final = frozenset({"mxfp4"})
"""Methods that leave attention and dense layers in the model's dtype."""


@dataclass(frozen=True, slots=True)
class ByStorage:
    """A figure for each way a parameter is stored: the bytes of one, or how many there are.

    Parameters
    ----------
    plain
        Embeddings, output head, norms, routers: always in the model's dtype.
    linear
        Attention, dense MLPs and shared experts.
    experts
        Routed experts.
    """

    plain: float
    linear: float
    experts: float

    @property
    def total(self) -> float:
        """The sum over the three."""
        return self.plain + self.linear + self.experts


def compute_dtype(model: ModelSpec, dtype: str = "auto") -> str:
    """Return the dtype that vLLM computes in; ``auto`` is the checkpoint's, with float32 served in 16 bits."""
    return _served(model.torch_dtype) if dtype == "auto" else dtype


def is_known_method(quantization: str) -> bool:
    """Whether vLLM up to 0.32 knows a quantisation method of this name, in whatever case.

    >>> is_known_method("FP8"), is_known_method("gptq_marlin_24"), is_known_method("fp8xyz")
    (True, True, False)
    """
    method = quantization.lower()
    family = method in _METHOD_FAMILIES or method.startswith(tuple(f"{name}_" for name in _METHOD_FAMILIES))
    return family or method in FP8_METHODS | _OTHER_METHODS | _QUANTIZED_BITS.keys()


def number_bytes(model: ModelSpec, dtype: str = "auto") -> float:
    """Return the bytes of one activation; an unknown dtype counts as 16 bits."""
    return float(DTYPE_BYTES.get(compute_dtype(model, dtype), 2))


def parameter_bytes(model: ModelSpec, dtype: str = "auto", quantization: str | None = None) -> ByStorage:
    """Return the bytes of each kind of parameter; quantisation is the engine's, else the checkpoint's own."""
    plain = number_bytes(model, dtype)
    method = (quantization or model.quantization or "").lower()
    experts = _quantized_bytes(model, method) if method else plain
    return ByStorage(plain, plain if method in _EXPERTS_ONLY else experts, experts)


def kv_number_bytes(model: ModelSpec, kv_cache_dtype: str | None = None, dtype: str = "auto") -> float:
    """Return the bytes of one entry of the KV cache; ``auto`` or None is the dtype the model computes in."""
    known = None if kv_cache_dtype in (None, "auto") else KV_DTYPE_BYTES.get(kv_cache_dtype or "")
    return number_bytes(model, dtype) if known is None else float(known)


def _served(torch_dtype: str) -> str:
    return torch_dtype if DTYPE_BYTES.get(torch_dtype) == 2 else "bfloat16"


def _quantized_bytes(model: ModelSpec, method: str) -> float:
    if method == (model.quantization or "").lower() and model.quantization_bits:
        return model.quantization_bits / _BITS_PER_BYTE
    return _QUANTIZED_BITS.get(method.lower(), _OTHER_QUANTIZED_BITS) / _BITS_PER_BYTE
