"""Where physics is asked: the configurations of a fit, and pairs of them of which one cannot be the faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.observations import Configuration
from srfa.specs import ModelSpec

_SIZES = (1, 2, 4, 8)
_ONE_KERNEL = "triton"
_DENSE, _MOE = "Llama-3.1-8B", "Mixtral-8x7B-v0.1"
_DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two configurations that differ in one thing: ``more`` has the larger TP, or the larger model."""

    less: Configuration
    more: Configuration


def configurations_of(coefficients: Coefficients, catalog: Catalog) -> tuple[Configuration, ...]:
    """Return what a fit is asked about: its GPUs, its models and two of the catalogue, at every size that divides them.

    A fit that knows no GPU or model of its own (a datasheet roofline) is asked about every GPU of the catalogue.

    Raises
    ------
    CatalogError
        A GPU or model of the fit is not in the catalogue.
    """
    origin = coefficients.provenance
    cuda = [name for name, gpu in catalog.gpus.items() if gpu.datasheet.kind == "cuda"]
    gpus = [catalog.resolve_gpu(name).name for name in origin.gpus] or cuda or list(catalog.gpus)
    models = [catalog.resolve_model(name) for name in origin.models]
    beside = [*_beside(catalog, _DENSE, moe=False), *_beside(catalog, _MOE, moe=True)]
    software = origin.software_versions[-1] if origin.software_versions else None
    unique = {model.name: model for model in (*models, *beside)}
    return tuple(
        _configuration(gpu, model, tp, ep, software)
        for gpu, model in product(dict.fromkeys(gpus), unique.values())
        for tp, ep in _parallel_sizes(model)
    )


def tp_pairs(where: Iterable[Configuration], catalog: Catalog) -> tuple[Pair, ...]:
    """Return each configuration with the one of twice its TP, where that divides the model; EP grows along.

    Both run the same kernel: vLLM has tuned fused-MoE tiles for some shards and not for their halves, which says
    nothing of TP. Where no job says which kernel ran, both get one by name.
    """
    pairs = []
    for one in (replace(place, moe_kernel=place.moe_kernel or _ONE_KERNEL) for place in where):
        tp = 2 * one.tensor_parallel_size
        ep = tp if one.expert_parallel_size > 1 else 1
        if (tp, ep) in _parallel_sizes(catalog.resolve_model(one.model)):
            pairs.append(Pair(one, replace(one, tensor_parallel_size=tp, expert_parallel_size=ep)))
    return tuple(pairs)


def size_pairs(where: Sequence[Configuration], catalog: Catalog) -> tuple[Pair, ...]:
    """Return pairs of dense models on one GPU, one of them as large in every dimension and larger in one.

    Mixture-of-experts models are left out: which kernel their experts get depends on the shape, not the size alone.
    """
    dense = [model for model in catalog.models.values() if not model.is_moe and not model.is_mla]
    larger = [pair for pair in permutations(dense, 2) if _larger(*pair)]
    places = {(one.gpu, one.software_version): one for one in where}
    return tuple(
        Pair(_at(one, small, tp), _at(one, large, tp))
        for one, (small, large) in product(places.values(), larger)
        for tp, _ in set(_parallel_sizes(small)) & set(_parallel_sizes(large))
    )


def place_words(one: Configuration) -> str:
    """Name a configuration for people.

    >>> place_words(_configuration("h100-sxm-80gb", ModelSpec.model_construct(name="m"), 2, 1, None))
    'm on h100-sxm-80gb, TP 2'
    """
    ep = f", EP {one.expert_parallel_size}" if one.expert_parallel_size > 1 else ""
    return f"{one.model} on {one.gpu}, TP {one.tensor_parallel_size}{ep}"


def _beside(catalog: Catalog, name: str, *, moe: bool) -> list[ModelSpec]:
    """Return the catalogue's model of that name, or the first of its kind; none where the catalogue has none."""
    kind = [model for model in catalog.models.values() if model.is_moe == moe]
    return ([model for model in kind if model.name.endswith(name)] or kind)[:1]


def _parallel_sizes(model: ModelSpec) -> tuple[tuple[int, int], ...]:
    """Return the (TP, EP) that divide the model: EP is 1, or TP for a mixture of experts."""
    sizes = [tp for tp in _SIZES if model.num_attention_heads % tp == 0]
    spread = [(tp, tp) for tp in sizes if tp > 1 and model.is_moe and model.num_experts % tp == 0]
    return (*((tp, 1) for tp in sizes), *spread)


def _larger(small: ModelSpec, large: ModelSpec) -> bool:
    same_kind = (small.quantization, small.torch_dtype, small.mlp_gated) == (
        large.quantization,
        large.torch_dtype,
        large.mlp_gated,
    )
    sizes = [(getattr(small, name), getattr(large, name)) for name in _DIMENSIONS]
    return same_kind and all(a <= b for a, b in sizes) and any(a < b for a, b in sizes)


def _at(one: Configuration, model: ModelSpec, tp: int) -> Configuration:
    return _configuration(one.gpu, model, tp, 1, one.software_version)


def _configuration(gpu: str, model: ModelSpec, tp: int, ep: int, software: str | None) -> Configuration:
    return Configuration(
        gpu=gpu,
        model=model.name,
        tensor_parallel_size=tp,
        expert_parallel_size=ep,
        data_parallel_size=1,
        dtype="bfloat16",
        quantization=None,
        kv_cache_dtype=None,
        moe_routing=None,
        moe_kernel=None,
        software_version=software,
        source=None,
    )
