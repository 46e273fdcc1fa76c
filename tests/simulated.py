"""Coefficients that make a fast, plain clock for simulations: linear in the tokens of a step."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators import estimator_named
from srfa.observations import from_table
from tests.steps import catalog, step

BASE_US, PREFILL_US, DECODE_US = 60_000.0, 180.0, 900.0
"""Of each step, each prefill token and each decoding request of one L4."""


def linear_coefficients(models=("meta-llama/Llama-3.1-8B",), gpus=("l4-24gb",), ranks=(1, 2, 4, 8)) -> Coefficients:
    """A fit of ``blackbox`` to steps that follow the law exactly; ranks share the work."""
    rows = [
        _step(model, gpu, size, number) for model in models for gpu in gpus for size in ranks for number in range(24)
    ]
    steps = from_table(pa.Table.from_pylist(rows))
    blackbox = estimator_named("blackbox")
    return blackbox.fit(blackbox.features(steps, catalog()), FitConfig())


def _step(model, gpu, ranks, number):
    rng = np.random.default_rng(number)
    prefill, decodes = int(rng.integers(1, 2000)), int(rng.integers(1, 64))
    if number % 3 == 0:
        prefill, decodes = (0, 1 + number) if number % 2 else (1 + 80 * number, 0)
    time_us = (BASE_US + PREFILL_US * prefill + DECODE_US * decodes) / ranks
    return step(
        job_id=f"{model}-{gpu}-{ranks}", model=model, gpu=gpu, tensor_parallel_size=ranks, step_time_us=time_us,
        prefill_new_tokens=[prefill] if prefill else [], prefill_context_tokens=[0] if prefill else [],
        decode_context_tokens=[100] * decodes, dtype="bfloat16",
    )  # fmt: skip
