"""CPU profiles with the figures they had on the machine that measured, in place of those their file ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from srfa.errors import DataInvalidError
from srfa.specs import GpuSpec


class ProbeFigures(BaseModel):
    """What ``probe.json`` says that a datasheet says too. Other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bf16_tflops: PositiveFloat
    memory_bandwidth_tbps: PositiveFloat


def measured_profile(spec: GpuSpec, probes: Sequence[Mapping[str, Any]]) -> GpuSpec:
    """Return the profile with the median figures of its probes; without a probe, as it is.

    Raises
    ------
    DataInvalidError
        A probe lacks a figure, or has one that is not a positive number.
    """
    if not probes:
        return spec
    try:
        figures = [ProbeFigures.model_validate(probe) for probe in probes]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataInvalidError(f"probe of {spec.name}: {place}: {first['msg']}; measure the jobs again") from error
    update = {name: median(getattr(one, name) for one in figures) for name in ProbeFigures.model_fields}
    source = f"median of {len(probes)} probe(s) on the machine that measured; before: {spec.datasheet.source}"
    sheet = spec.datasheet.model_copy(update={**update, "source": source})
    return spec.model_copy(update={"datasheet": sheet})
