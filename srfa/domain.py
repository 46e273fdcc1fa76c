"""Is a step inside what a fit saw? A grade with its reason, and a distance.

The distance is the leverage ``h = z' (Z'Z / n + ridge I)^-1 z`` of a few physical descriptors ``z`` (logarithms,
shifted and scaled) over its 99 % quantile among the training steps. It sees a batch none of whose
descriptors is new by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from srfa.catalog import Catalog
from srfa.grades import N_GRADES, TrainingDomain
from srfa.observations import Observations
from srfa.precision import compute_dtype
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, bytes_per_us, flops_per_us, per_step, places, step_work

FAR_RATIO: Final = 10.0
"""A leverage ratio that is far even where the training steps gave nothing to try distances on."""
_RIDGE: Final = 0.1
"""Share of a descriptor's own variance: a direction without variance among the training steps (bandwidth against peak
with two GPUs) counts ten times as far as one with it, not infinitely."""
_SMALLEST_SCALE: Final = 0.5
"""A descriptor that hardly varied (one GPU, one model) is measured in factors of e^0.5 = 1.65."""
_QUANTILE: Final = 0.99
_BRIDGED_BY: Final = ("gpu", "model", "workload", "tensor_parallel_size")
IN_DOMAIN: Final = "in domain"
UNQUANTIZED: Final = "none"
_LONG_NAMES: Final = {"half": "float16", "float": "float32"}
_SIXTEEN_BITS: Final = frozenset({"bfloat16", "float16"})


@dataclass(frozen=True, slots=True)
class Graded:
    """Grade, reason and distance of steps; every array has one entry a step.

    Parameters
    ----------
    grade
        0 to 4, see :mod:`srfa.grades`.
    reasons, reason_index
        The distinct reasons, and which one each step has.
    leverage_ratio
        Leverage over the 99 % quantile of the training steps.
    """

    grade: IntArray
    reasons: tuple[str, ...]
    reason_index: IntArray
    leverage_ratio: FloatArray

    @property
    def reason(self) -> list[str]:
        """The reason of each step."""
        return [self.reasons[index] for index in self.reason_index]


def training_domain(observations: Observations, catalog: Catalog) -> TrainingDomain:
    """Return what a fit to these observations has seen.

    Raises
    ------
    CatalogError
        A GPU or model of the observations is unknown.
    """
    where = places(observations, catalog)
    names, values = descriptors(observations, catalog)
    spread = _Spread.of(values)
    return TrainingDomain(
        gpus=tuple(sorted({place.gpu.name for place in where})),
        models=tuple(sorted({place.model.name for place in where})),
        software_versions=tuple(sorted({one.software_version or "" for one in observations.configurations} - {""})),
        tensor_parallel_sizes=tuple(sorted({one.tensor_parallel_size for one in observations.configurations})),
        expert_parallel_sizes=tuple(sorted({one.expert_parallel_size for one in observations.configurations})),
        dtypes=tuple(sorted({_dtype(place) for place in where})),
        quantizations=tuple(sorted({_quantization(place) for place in where})),
        kv_cache_dtypes=tuple(sorted({_kv_cache_dtype(place) for place in where})),
        descriptors=names,
        centre=_rounded(spread.centre),
        scale=_rounded(spread.scale),
        inverse_covariance=tuple(_rounded(row) for row in spread.inverse),
        leverage_limit=spread.limit,
        bridged_ratio=_bridged(observations, values),
    )


def grade_steps(observations: Observations, catalog: Catalog, domain: TrainingDomain) -> Graded:
    """Grade steps by what a fit saw.

    Raises
    ------
    CatalogError
        A GPU or model of the observations is unknown.
    """
    _, values = descriptors(observations, catalog)
    ratio = _Spread.recorded(domain).leverage(values) / domain.leverage_limit
    distance = np.digitize(ratio, [1.0, max(FAR_RATIO, domain.bridged_ratio)])
    found = [_of_place(place, domain) for place in places(observations, catalog)]
    by_place = np.array([grade for grade, _ in found], dtype=np.int64)
    by_distance = np.array([0, 1, N_GRADES - 1], dtype=np.int64)
    reasons = tuple(_joined(reason, said) for _, reason in found for said in _DISTANCE_WORDS)
    return Graded(
        grade=np.maximum(by_place[observations.configuration_index], by_distance[distance]),
        reasons=reasons,
        reason_index=len(_DISTANCE_WORDS) * observations.configuration_index + distance,
        leverage_ratio=ratio,
    )


def descriptors(observations: Observations, catalog: Catalog) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and values of what places a step: its batch, its work, its GPU; shape ``(n_steps, 9)``."""
    where = places(observations, catalog)
    work = step_work(observations, where)
    prefill, decode = observations.numbers("prefill_tokens"), observations.numbers("decode_tokens")
    context = observations.decode_context_tokens.sum() + observations.prefill_context_tokens.sum()
    columns = {
        "log_tokens": np.log(prefill + decode),
        "log1p_prefill_tokens": np.log1p(prefill),
        "log1p_decode_requests": np.log1p(observations.numbers("num_decode_reqs")),
        "log1p_context_tokens": np.log1p(context),
        "log_weight_bytes": np.log(work.weight_bytes),
        "log_flops": np.log(work.prefill_flops + work.decode_flops),
        "log_peak_flops": np.log(per_step(observations, where, flops_per_us)),
        "log_bandwidth": np.log(per_step(observations, where, bytes_per_us)),
        "log_tensor_parallel_size": np.log(observations.numbers("tensor_parallel_size")),
    }
    return tuple(columns), np.stack(list(columns.values()), axis=1)


@dataclass(frozen=True, slots=True)
class _Spread:
    """Where training steps lie; ``limit`` is the 99 % quantile of their own leverage."""

    centre: FloatArray
    scale: FloatArray
    inverse: FloatArray
    limit: float

    @classmethod
    def of(cls, values: FloatArray) -> _Spread:
        centre, scale = values.mean(axis=0), np.maximum(values.std(axis=0), _SMALLEST_SCALE)
        z = (values - centre) / scale
        covariance = z.T @ z / len(z) + _RIDGE * np.eye(z.shape[1])
        spread = cls(centre, scale, np.linalg.inv(covariance), 1.0)
        limit = max(float(np.quantile(spread.leverage(values), _QUANTILE)), 1.0)
        return cls(centre, scale, spread.inverse, limit)

    @classmethod
    def recorded(cls, domain: TrainingDomain) -> _Spread:
        return cls(
            np.array(domain.centre), np.array(domain.scale), np.array(domain.inverse_covariance), domain.leverage_limit
        )

    def leverage(self, values: FloatArray) -> FloatArray:
        z = (values - self.centre) / self.scale
        return np.asarray(np.einsum("ij,jk,ik->i", z, self.inverse, z, optimize=True))


def _bridged(observations: Observations, values: FloatArray) -> float:
    """Return the largest distance between a group of steps and all others: validations have predicted across it."""
    ratios = [0.0]
    for column in _BRIDGED_BY:
        names, codes = observations.codes(column)
        for code in range(len(names)) if len(names) > 1 else ():
            rest, group = _Spread.of(values[codes != code]), values[codes == code]
            ratios.append(float(np.quantile(rest.leverage(group), _QUANTILE)) / rest.limit)
    return max(ratios)


_DISTANCE_WORDS: Final = ("", "a batch beyond those of the fit", "farther from the fit than anything it was tried on")


def _of_place(place: Place, domain: TrainingDomain) -> tuple[int, str]:
    """Return grade and reason of a configuration, whatever the batch."""
    unseen = list(_unseen(place, domain))
    kinds = {kind for kind, _, _ in unseen}
    grade = N_GRADES - 1 if {"GPU", "model"} <= kinds else max((grade for _, grade, _ in unseen), default=0)
    return grade, "; ".join(f"{kind} {name} was not in the fit" for kind, _, name in unseen)


def _unseen(place: Place, domain: TrainingDomain) -> Iterator[tuple[str, int, str]]:
    """Yield what of a configuration the fit has not seen, with the grade it means alone."""
    one = place.configuration
    if place.gpu.name not in domain.gpus:
        yield "GPU", 3, place.gpu.name
    if domain.software_versions and one.software_version and one.software_version not in domain.software_versions:
        yield "engine", 3, one.software_version
    yield from _unseen_formats(place, domain)
    if place.model.name not in domain.models:
        yield "model", 2, place.model.name
    if one.tensor_parallel_size not in domain.tensor_parallel_sizes:
        yield "TP", 1, str(one.tensor_parallel_size)
    if one.expert_parallel_size not in domain.expert_parallel_sizes:
        yield "EP", 1, str(one.expert_parallel_size)


def _unseen_formats(place: Place, domain: TrainingDomain) -> Iterator[tuple[str, int, str]]:
    if domain.dtypes and _dtype(place) not in _alike(place, domain.dtypes):
        yield "dtype", 3, _dtype(place)
    if domain.quantizations and _quantization(place) not in domain.quantizations:
        yield "quantization", 3, _quantization(place)
    if domain.kv_cache_dtypes and _kv_cache_dtype(place) not in domain.kv_cache_dtypes:
        yield "KV cache dtype", 3, _kv_cache_dtype(place)


def _alike(place: Place, dtypes: tuple[str, ...]) -> frozenset[str]:
    """Add to the dtypes of a fit those that cost this GPU the same: both of 16 bits, where one rate holds for them."""
    sheet = place.gpu.datasheet
    one_rate = sheet.fp16_tflops in (None, sheet.bf16_tflops)
    return frozenset(dtypes) | (_SIXTEEN_BITS if one_rate and _SIXTEEN_BITS & set(dtypes) else frozenset())


def _dtype(place: Place) -> str:
    dtype = compute_dtype(place.model, place.configuration.dtype)
    return _LONG_NAMES.get(dtype, dtype)


def _quantization(place: Place) -> str:
    return (place.configuration.quantization or place.model.quantization or UNQUANTIZED).lower()


def _kv_cache_dtype(place: Place) -> str:
    """Return ``auto`` for a cache in the dtype that the model computes in."""
    dtype = place.configuration.kv_cache_dtype or "auto"
    return "auto" if _LONG_NAMES.get(dtype, dtype) == _dtype(place) else dtype


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason) or IN_DOMAIN


def _rounded(values: FloatArray) -> tuple[float, ...]:
    """Ten significant digits: what is beyond depends on the order of a sum."""
    return tuple(float(f"{value:.10g}") for value in values)
