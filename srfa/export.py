"""Coefficients in the formats that other programs load: our own JSON, and BLIS's YAML with its hardware file.

BLIS refuses unknown keys and negative coefficients, so provenance goes into YAML comments; :func:`check_blis` is as
strict as BLIS and runs on what was written before it gets its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from srfa.blis import ALPHAS, BETAS, BlisProjection, fitted_alphas_us, project
from srfa.catalog import Catalog
from srfa.coefficients import Coefficients, Provenance
from srfa.errors import InputError
from srfa.estimators import estimator_named
from srfa.files import write_text
from srfa.observations import Observations
from srfa.specs import GpuSpec

__all__ = ["check_blis", "hardware_config", "projection_of", "write_blis"]

DEFAULTS_FILE = "defaults.yaml"
HARDWARE_FILE = "hardware_config.json"
_TOP, _ALPHA, _BETA = "trained_physics_coefficients", "alpha_coeffs", "beta_coeffs"
_BETA_LENGTHS = range(7, len(BETAS) + 1)


def projection_of(
    coefficients: Coefficients, observations: Observations, catalog: Catalog, requests: pa.Table | None = None
) -> BlisProjection:
    """Project a fit onto the BLIS basis over measured steps; see :func:`srfa.blis.project`.

    A fit that carries models of requests gives its alphas by them, for requests as long as the table's on average.
    """
    estimator = estimator_named(coefficients.estimator)
    predicted_us = estimator.predict(coefficients, estimator.features(observations, catalog))
    projection = project(observations, catalog, predicted_us, requests)
    fitted_us = fitted_alphas_us(coefficients.blocks, requests)
    return projection if fitted_us is None else replace(projection, alpha_us=fitted_us)


def write_blis(
    projection: BlisProjection, provenance: Provenance, gpus: Iterable[GpuSpec], folder: Path
) -> tuple[Path, Path]:
    """Write ``defaults.yaml`` and ``hardware_config.json``; both are complete or absent.

    Raises
    ------
    InputError
        A coefficient is negative or not finite, or a file cannot be written.
    """
    text = defaults_yaml(projection, provenance)
    check_blis(yaml.safe_load(text), where=DEFAULTS_FILE)
    hardware = json.dumps(hardware_config(gpus), indent=2) + "\n"
    return _write(folder / DEFAULTS_FILE, text), _write(folder / HARDWARE_FILE, hardware)


def defaults_yaml(projection: BlisProjection, provenance: Provenance) -> str:
    """Return the YAML that BLIS loads; everything but the two lists is a comment."""
    lines = [f"# {line}" for line in _comments(projection, provenance)]
    lines += [f"{_TOP}:", f"  {_ALPHA}:", *_items(projection.alpha_us, ALPHAS)]
    lines += [f"  {_BETA}:", *_items(projection.beta, BETAS)]
    return "\n".join(lines) + "\n"


def hardware_config(gpus: Iterable[GpuSpec]) -> dict[str, dict[str, float]]:
    """Return BLIS's hardware entries by GPU name: dense TFLOP/s, TB/s, utilisations as ratios, GiB.

    ``TFlopsFP8`` is 0 where the GPU computes no FP8.
    """
    return {gpu.name: _hardware_entry(gpu) for gpu in gpus}


def check_blis(document: object, *, where: str = DEFAULTS_FILE) -> None:
    """Refuse what BLIS would refuse: unknown or missing keys, wrong lengths, negative or non-finite coefficients.

    Raises
    ------
    InputError
        With the key, its value and what is expected.

    Examples
    --------
    >>> check_blis({"trained_physics_coefficients": {"alpha_coeffs": [0, 0, 0], "beta_coeffs": [1] * 11}})
    """
    block = _exactly(document, {_TOP}, where)[_TOP]
    lists = _exactly(block, {_ALPHA, _BETA}, f"{where}: {_TOP}")
    _check_list(lists[_ALPHA], range(len(ALPHAS), len(ALPHAS) + 1), f"{where}: {_ALPHA}")
    _check_list(lists[_BETA], _BETA_LENGTHS, f"{where}: {_BETA}")


def _hardware_entry(gpu: GpuSpec) -> dict[str, float]:
    sheet, calibration = gpu.datasheet, gpu.calibration
    return {
        "TFlopsPeak": sheet.bf16_tflops,
        "TFlopsFP8": sheet.fp8_tflops or 0.0,
        "BwPeakTBs": sheet.memory_bandwidth_tbps,
        "mfuPrefill": calibration.mfu_prefill,
        "mfuDecode": calibration.mfu_decode,
        "MemoryGiB": sheet.memory_gib,
    }


def _comments(projection: BlisProjection, provenance: Provenance) -> list[str]:
    cost = projection.mape_pct - projection.estimator_mape_pct
    lines = [
        "Refitted on the BLIS roofline basis (non-negative least squares on relative errors); the fitted model itself",
        "has no place in this format.",
        f"MAPE on the same {projection.n_steps} steps: estimator {projection.estimator_mape_pct:.2f} %, this projection"
        f" {projection.mape_pct:.2f} % ({cost:+.2f} points).",
    ]
    if projection.unidentified:
        lines.append(f"Not identified by these steps, therefore 0: {', '.join(projection.unidentified)}.")
    if not any(projection.alpha_us):
        lines.append("alpha_coeffs were not measured (no table of requests) and are 0.")
    lines += [f"srfa {provenance.srfa_version}; GPUs: {', '.join(provenance.gpus)}"]
    lines += [f"models: {', '.join(provenance.models)}; engines: {', '.join(provenance.software_versions)}"]
    lines += [f"data sha256 {digest} {name}" for name, digest in provenance.data_sha256.items()]
    return [" ".join(line.split()) for line in lines]


def _items(values: Iterable[float], named: Iterable[tuple[str, str]]) -> list[str]:
    return [f"    - {_number(value)}  # {name}, {unit}" for value, (name, unit) in zip(values, named, strict=True)]


def _number(value: float) -> str:
    """Write a number so that YAML 1.1 reads it as one: it takes ``1e-05`` for text, ``1.0e-05`` for a number."""
    mantissa, exponent, power = repr(value).partition("e")
    return f"{mantissa}.0e{power}" if exponent and "." not in mantissa else repr(value)


def _exactly(value: object, keys: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: should be a mapping, not {type(value).__name__}")
    for key in value:
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}; BLIS accepts exactly {', '.join(sorted(keys))}")
    for key in sorted(keys - set(value)):
        raise InputError(f"{where}: missing key {key!r}; add it")
    return value


def _check_list(value: object, lengths: range, where: str) -> None:
    if not isinstance(value, list) or len(value) not in lengths:
        got = len(value) if isinstance(value, list) else type(value).__name__
        wanted = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        raise InputError(f"{where}: should be a list of {wanted} numbers, got {got}")
    for position, number in enumerate(value):
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or number < 0:
            raise InputError(f"{where}[{position}]={number!r} should be a finite number >= 0")


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
