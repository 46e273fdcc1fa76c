"""The fit of ``srfa-seed``: how long it takes, and what the analytic gradient is worth, as a ratio in one run.

Run as ``python -m benchmarks.fit [N_STEPS]``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize

from srfa.catalog import load_catalog
from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from srfa.estimators.srfa_seed import problem_of
from srfa.fit.convex import convex_start
from srfa.fit.objective import Penalty, loss_and_gradient
from srfa.fit.softplus import refine
from srfa.observations import Observations, from_table
from srfa.roofline import floor_us

ROOT = Path(__file__).parent.parent
PENALTY = Penalty(0.001, 0.001, 0.1)


def random_observations(n_steps: int) -> pa.Table:
    """Return steps with random batches on two GPUs and two models; the labels are planted by ``main``."""
    rng = np.random.default_rng(0)
    prefills, decodes = rng.integers(0, 3, n_steps), rng.integers(1, 32, n_steps)
    new = [rng.integers(1, 2048, count).astype(np.int32) for count in prefills]
    context = [rng.integers(0, 2048, count).astype(np.int32) for count in prefills]
    decode = [rng.integers(1, 4096, count).astype(np.int32) for count in decodes]
    return pa.table(
        {
            "job_id": [f"job-{number % 20}" for number in range(n_steps)],
            "gpu": np.array(["a100-sxm-80gb", "h100-sxm-80gb"])[rng.integers(0, 2, n_steps)],
            "model": np.array(["meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1"])[rng.integers(0, 2, n_steps)],
            "tensor_parallel_size": np.full(n_steps, 4),
            "step_time_us": np.ones(n_steps),
            "num_prefill_reqs": prefills,
            "num_decode_reqs": decodes,
            "prefill_tokens": [int(row.sum()) for row in new],
            "decode_tokens": decodes,
            "prefill_new_tokens": new,
            "prefill_context_tokens": context,
            "decode_context_tokens": decode,
        }
    )


def planted(n_steps: int) -> Observations:
    """Return random steps whose labels are twice their roofline floor plus 2 ms, with 5 % noise."""
    catalog = load_catalog(ROOT / "hardware", ROOT / "models")
    table = random_observations(n_steps)
    floor = floor_us(from_table(table), catalog)
    labels = (2.0 * floor + 2_000.0) * np.random.default_rng(1).normal(1.0, 0.05, n_steps)
    return from_table(table.set_column(4, "step_time_us", pa.array(labels)))


def main(n_steps: int) -> None:
    """Print the seconds of features, one fit, the whole search, and the ratio of finite differences to the gradient."""
    catalog, estimator = load_catalog(ROOT / "hardware", ROOT / "models"), estimator_named("srfa-seed")
    observations = planted(n_steps)
    begin = time.perf_counter()
    features = estimator.features(observations, catalog)
    after_features = time.perf_counter()
    estimator.fit(features, FitConfig())
    after_search = time.perf_counter()
    problem = problem_of(features)
    start = convex_start(problem, PENALTY, max_rows=5_000, seed=0)
    after_start = time.perf_counter()
    refine(problem, PENALTY, start, max_iterations=200)
    analytic = time.perf_counter() - after_start
    begin_numeric = time.perf_counter()
    minimize(lambda at: loss_and_gradient(at, problem, PENALTY)[0], start, method="L-BFGS-B", options={"maxiter": 200})
    numeric = time.perf_counter() - begin_numeric
    print(f"steps {n_steps}")
    print(f"features {after_features - begin:.3f} s, {n_steps / (after_features - begin):,.0f} steps/s")
    print(f"search of 27 settings x 5 folds and fit {after_search - after_features:.2f} s")
    print(f"convex start {after_start - after_search:.2f} s, refinement {analytic:.3f} s")
    print(f"finite differences / analytic gradient {numeric / analytic:.1f} x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7_000)
