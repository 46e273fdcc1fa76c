"""How long ``srfa`` takes: features, fits, the search, predictions, and the design's training loop beside it.

Run as ``python -m benchmarks.fit [N_STEPS]`` (100,000 by default); ``python -m benchmarks.fit 1000000`` for a million.
Limits: 100,000 steps in 5 s, a million in 30 s and 2 GB; 27 settings x 5 folds of 7,000 steps in 20 s; a million
predictions a second in tables, features included, and 50,000 singly.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import minimize

from benchmarks.planted import catalog, observations, table
from srfa.coefficients import Coefficients, FitConfig
from srfa.estimators import estimator_named
from srfa.estimators.srfa import StepClock
from srfa.features import FeatureMatrix
from srfa.observations import Observations, load_observations
from srfa.operator_kernels import StepTotals
from srfa.operators import step_totals
from srfa.ragged import FloatArray

SRFA = estimator_named("srfa")
GRID_STEPS = 7_000
GRID = FitConfig(prior_weight=tuple(np.logspace(-4.5, -2.5, 9)))
ONE_SETTING = FitConfig(huber_delta=(0.1,))
SINGLES = 200_000
GRID_FITS = 27 * 5
DESIGN_ITERATIONS = 200
MIB = 2**20
KIB = 2**10


def timed_fit(path: Path) -> None:
    """Read steps from a file, fit them, and print seconds and this process's peak memory."""
    shelf = catalog()
    compile_first(shelf_rows=200)
    begin = time.perf_counter()
    steps = load_observations([path])
    read = time.perf_counter()
    features = SRFA.features(steps, shelf)
    computed = time.perf_counter()
    coefficients = SRFA.fit(features, FitConfig())
    fitted = time.perf_counter()
    del features  # a prediction computes its own
    SRFA.predict(coefficients, SRFA.features(steps, shelf))
    predicted = time.perf_counter()
    n, peak = steps.n_steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MIB
    print(f"{n:,} steps: read {read - begin:.2f} s, features {computed - read:.2f} s, fit {fitted - computed:.2f} s")
    print(f"  features + fit {fitted - read:.2f} s; {n / (computed - read):,.0f} steps/s of features")
    print(f"  prediction with features {n / (predicted - fitted):,.0f} steps/s; peak memory {peak:,.0f} MiB")


def compile_first(*, shelf_rows: int) -> None:
    """Fit a few steps, so that no timing holds a compilation or an import."""
    few = SRFA.features(observations(shelf_rows), catalog())
    SRFA.predict(SRFA.fit(few, ONE_SETTING), few)


def singles(coefficients: Coefficients, steps: Observations) -> float:
    """Return predictions a second, one call a step."""
    clock = StepClock(coefficients, steps.configurations[0], catalog())
    totals = [StepTotals(*row) for row in step_totals(steps)[:1_000].tolist()]
    clock.step_time_us(totals[0])
    begin = time.perf_counter()
    for number in range(SINGLES):
        clock.step_time_us(totals[number % len(totals)])
    return SINGLES / (time.perf_counter() - begin)


def design_seconds(steps: Observations) -> tuple[float, int]:
    """Return seconds and objective evaluations of one fit of the design's training loop, 12 parameters.

    The design (its Idea 5, "Joint Optimization with Huber Loss"): gamma of four overheads and the MoE scalar, beta of
    seven compute features, ``X_fixed gamma + softplus(X_compute beta)``, summed Huber loss of the absolute residual,
    two ridges, scipy's ``minimize`` within bounds and without a gradient. Its ``log(1 + exp(x))`` overflows above
    ``x = 709``, so softplus is ``logaddexp`` here; labels and features are in milliseconds, columns of one size.
    """
    features = estimator_named("srfa-seed").features(steps, catalog())
    y = features.step_time_us / 1e3
    fixed = _one_size(np.hstack([features.blocks["fixed"].values, features.blocks["moe"].values]))
    compute = _one_size(features.blocks["compute"].values)

    def objective(parameters: FloatArray) -> float:
        gamma, beta = parameters[: fixed.shape[1]], parameters[fixed.shape[1] :]
        residual = np.abs(y - fixed @ gamma - np.logaddexp(0.0, compute @ beta))
        huber = np.where(residual <= 1.0, 0.5 * residual**2, residual - 0.5)
        return float(np.sum(huber) + 0.1 * np.sum(gamma**2) + 0.1 * np.sum(beta**2))

    bounds = [(0.0, None)] * fixed.shape[1] + [(None, None)] * compute.shape[1]
    begin = time.perf_counter()
    start = np.full(len(bounds), 0.1)
    limits = {"maxiter": DESIGN_ITERATIONS, "maxfun": 100_000}
    result = minimize(objective, start, method="L-BFGS-B", bounds=bounds, options=limits)
    return time.perf_counter() - begin, int(result.nfev)


def _one_size(columns: FloatArray) -> FloatArray:
    size = np.abs(columns).max(axis=0)
    return columns / np.where(size > 0, size, 1.0)


def seconds(features: FeatureMatrix, config: FitConfig) -> float:
    """Return the seconds of a fit."""
    begin = time.perf_counter()
    SRFA.fit(features, config)
    return time.perf_counter() - begin


def beside_the_design(steps: Observations) -> None:
    """Print one fit of each, and what the design's search of 27 settings x 5 folds would take."""
    one = seconds(SRFA.features(steps, catalog()), ONE_SETTING)
    searched = seconds(SRFA.features(steps, catalog()), GRID)
    design, evaluations = design_seconds(steps)
    print(f"{steps.n_steps:,} steps, one setting: srfa {one:.2f} s, the design's loop {design:.1f} s ", end="")
    print(f"({evaluations:,} evaluations, at most {DESIGN_ITERATIONS} iterations): {design / one:.0f} x")
    whole = design * (1.0 + 0.8 * GRID_FITS)
    print(f"  with 27 settings x 5 folds: srfa {searched:.1f} s, the design's loop {whole:,.0f} s", end="")
    print(f" (the one fit times 135 of 80 % of the steps): {whole / searched:.0f} x")


def main(n_steps: int) -> None:
    """Print every figure; files are fitted in a process of their own, whose memory is then the fit's."""
    compile_first(shelf_rows=500)
    few = observations(GRID_STEPS)
    features = SRFA.features(few, catalog())
    print(f"27 settings x 5 folds, {GRID_STEPS:,} steps: {seconds(features, GRID):.1f} s; ", end="")
    print(f"two at a time {seconds(features, GRID.model_copy(update={'n_workers': 2})):.1f} s")
    print(f"single steps: {singles(SRFA.fit(features, ONE_SETTING), few):,.0f} a second", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.parquet"
        pq.write_table(table(n_steps), path)
        subprocess.run([sys.executable, "-m", "benchmarks.fit", "--file", str(path)], check=True)
    beside_the_design(observations(min(n_steps, 100_000)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--file"]:
        timed_fit(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
