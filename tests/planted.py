"""Observations whose step times follow a known law, and an estimator that can learn it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa

from srfa.coefficients import CoefficientBlock, Coefficients
from srfa.errors import FitError
from srfa.features import Block, feature_matrix
from srfa.observations import Observations, from_table
from srfa.roofline import floor_us
from tests.steps import catalog, step

GPUS = ("a100-sxm-80gb", "h100-sxm-80gb")
MODELS = ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1")
WORKLOADS = ("prefill", "decode", "mixed")
FLOOR_FACTOR, OVERHEAD_US = 1.5, 800.0
"""The planted law: ``step_time_us = 1.5 x floor + 800``."""


def planted_table(*, noise: float = 0.0, seed: int = 0, steps_per_job: int = 12) -> pa.Table:
    """One job for each GPU, model, workload and one of two TP sizes; relative ``noise`` on the labels."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, (gpu, model, workload) in enumerate(product(GPUS, MODELS, WORKLOADS)):
        job = {"gpu": gpu, "model": model, "workload": workload, "job_id": f"job-{number:02d}"}
        job["tensor_parallel_size"] = 4 if "Mixtral" in model else 1 + number % 2
        job["software_version"] = "vllm 0.32.0"
        rows += [step(**job, **_batch(workload, rng)) for _ in range(steps_per_job)]
    table = pa.Table.from_pylist(rows)
    label = FLOOR_FACTOR * floor_us(from_table(table), catalog()) + OVERHEAD_US
    label *= 1.0 + noise * rng.standard_normal(len(label))
    position = table.column_names.index("step_time_us")
    return table.set_column(position, "step_time_us", pa.array(label))


def planted_observations(**settings) -> Observations:
    return from_table(planted_table(**settings))


def scaled_labels(table: pa.Table, factor) -> pa.Table:
    """Multiply every label by a number, or by an array of one a row."""
    position = table.column_names.index("step_time_us")
    return table.set_column(position, "step_time_us", pa.array(table["step_time_us"].to_numpy() * factor))


def _batch(workload, rng):
    prefill = rng.integers(64, 2048, rng.integers(1, 4)).tolist() if workload != "decode" else []
    decode = rng.integers(16, 4096, rng.integers(1, 64)).tolist() if workload != "prefill" else []
    return {
        "prefill_new_tokens": prefill,
        "prefill_context_tokens": [0] * len(prefill),
        "decode_context_tokens": decode,
    }


@dataclass(frozen=True)
class LinearEstimator:
    """Least squares on relative errors of the roofline floor and a constant; does not depend on the order of steps.

    ``slower`` scales its predictions for jobs on one GPU: a planted regression.
    """

    slower: float = 1.0
    slower_from_us: float = np.inf
    converges: bool = True
    fits: bool = True
    name: str = "linear"

    def features(self, observations, catalog):
        columns = {("floor", "us"): floor_us(observations, catalog), ("constant", "1"): 1.0}
        return feature_matrix(observations, {"linear": Block.of(columns, observations.n_steps)})

    def fit(self, features, config, *, prior=None):
        if not self.fits:
            raise FitError("planted: this estimator refuses to fit")
        basis = features.blocks["linear"].values / features.step_time_us[:, None]
        values = np.linalg.lstsq(basis, np.ones(len(basis)))[0]
        block = CoefficientBlock(
            names=("floor", "constant"),
            units=("us", "1"),
            values=tuple(float(f"{value:.9g}") for value in values),
            lower=(0.0, 0.0),
            upper=(None, None),
            at_bound=(False, False),
            scales=(1.0, 1.0),
        )
        message = "solved" if self.converges else "planted: out of iterations"
        return Coefficients(
            estimator=self.name, blocks={"linear": block}, converged=self.converges, message=message, config=config
        )

    def predict(self, coefficients, features):
        predicted = features.blocks["linear"].values @ np.array(coefficients.blocks["linear"].values)
        return predicted * np.where(features.step_time_us > self.slower_from_us, self.slower, 1.0)
