"""Accuracy on public measurements: the project's own table of targets, for srfa and the estimators beside it.

Run as ``python -m benchmarks.accuracy [FOLDER]``; FOLDER holds the measured step times (default ``../shared/data``).
Every figure is a MAPE in percent on steps of groups the fit had not seen, except the row that says pooled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srfa.catalog import Catalog, load_catalog
from srfa.coefficients import Coefficients, FitConfig
from srfa.errors import SrfaError
from srfa.estimators import estimator_named
from srfa.estimators.protocol import Estimator
from srfa.features import FeatureMatrix
from srfa.folds import Split, split_folds
from srfa.observations import Observations, load_observations

ROOT = Path(__file__).parent.parent
ESTIMATORS = ("srfa", "srfa-seed", "roofline", "forest")
FEW_STEPS, DRAWS = 50, 10
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """One file with the features one estimator sees in it."""

    observations: Observations
    features: FeatureMatrix
    catalog: Catalog
    estimator: Estimator

    @classmethod
    def read(cls, path: Path, estimator: Estimator, catalog: Catalog) -> Data:
        """Read a file and compute its features."""
        observations = load_observations([path])
        return cls(observations, estimator.features(observations, catalog), catalog, estimator)

    def fit(self, rows: Rows | None = None, prior: Coefficients | None = None) -> Coefficients:
        """Fit to some of its steps."""
        features = self.features if rows is None else self.features.take(rows)
        return (
            self.estimator.fit(features, FitConfig(), prior=prior)
            if prior
            else self.estimator.fit(features, FitConfig())
        )

    def mape_pct(self, coefficients: Coefficients, rows: Rows | None = None) -> float:
        """Return the error on some of its steps."""
        features = self.features if rows is None else self.features.take(rows)
        return float(100 * np.mean(np.abs(self.estimator.predict(coefficients, features) / features.step_time_us - 1)))

    def folds(self, split: Split, prior: Coefficients | None = None) -> list[float]:
        """Return the error on each held-out group."""
        found = split_folds(self.observations, self.catalog, split)
        return [self.mape_pct(self.fit(fold.train, prior), fold.test) for fold in found]


def few_steps(data: Data) -> list[float]:
    """Return the error on each GPU after a fit to the other one was refitted to 50 of its steps, mean of 10 draws."""
    errors = []
    for fold in split_folds(data.observations, data.catalog, "leave-one-gpu-out"):
        source = data.fit(fold.train)
        draws = []
        for seed in range(DRAWS):
            few = np.random.default_rng(seed).choice(fold.test, FEW_STEPS, replace=False)
            draws.append(data.mape_pct(data.fit(few, source), np.setdiff1d(fold.test, few)))
        errors.append(float(np.mean(draws)))
    return errors


def lines(folder: Path, name: str) -> dict[str, str]:
    """Return one estimator's row of every line of the table."""
    catalog, estimator = load_catalog(ROOT / "hardware", ROOT / "models"), estimator_named(name)
    names = ("steps_a100_h100", "steps_rtxpro6000_mixed", "steps_h100_vllm_traces", "steps_splitwise_llama2_70b")
    main, rtx, traces, splitwise = (Data.read(folder / f"{file}.parquet", estimator, catalog) for file in names)
    source = main.fit()
    prior = source if name in {"srfa", "srfa-seed"} else None
    questions: dict[str, Callable[[], list[float]]] = {
        "A100, H100 held out": lambda: main.folds("leave-one-gpu-out"),
        "each model held out (Qwen3-30B, 70B, 8B, Mixtral)": lambda: main.folds("leave-one-model-out"),
        "pooled, in sample": lambda: [main.mape_pct(source)],
        "dense -> MoE": lambda: main.folds("dense-to-moe"),
        "MoE -> dense": lambda: main.folds("moe-to-dense"),
        "EP 1 -> EP": lambda: main.folds("ep1-to-ep"),
        "each TP held out (1, 2, 4, 8)": lambda: main.folds("leave-one-tp-out"),
        "each workload held out (decode, mixed, prefill)": lambda: main.folds("leave-one-workload-out"),
        "RTX mixed batches, zero-shot": lambda: [rtx.mape_pct(source)],
        "RTX, each model held out within (32B, 8B)": lambda: rtx.folds("leave-one-model-out"),
        "50 steps of the target GPU (A100, H100)": lambda: few_steps(main) if prior else [],
        "real H100 traces, zero-shot": lambda: [traces.mape_pct(source)],
        "real H100 traces, each run held out (general, codegen)": lambda: traces.folds("leave-one-job-out", prior),
        "Splitwise 2023, zero-shot": lambda: [splitwise.mape_pct(source)],
        "Splitwise 2023, refitted in sample": lambda: [splitwise.mape_pct(splitwise.fit(prior=prior))],
        "Splitwise 2023, each TP held out (2, 4, 8)": lambda: splitwise.folds("leave-one-tp-out", prior),
    }
    return {question: _answer(ask) for question, ask in questions.items()}


def _answer(ask: Callable[[], list[float]]) -> str:
    try:
        return " / ".join(f"{error:.1f}" for error in ask()) or "-"
    except SrfaError as error:
        return f"refused: {type(error).__name__}"


def main(folder: Path) -> None:
    """Print the table as Markdown."""
    columns = {name: lines(folder, name) for name in ESTIMATORS}
    print(f"| MAPE % | {' | '.join(f'`{name}`' for name in columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for question in next(iter(columns.values())):
        print(f"| {question} | {' | '.join(column[question] for column in columns.values())} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data")
