"""What each term of ``srfa`` is worth: the error without it, on every split of measured steps.

Run as ``python -m benchmarks.ablation [FOLDER]`` (``../shared/data`` by default). Prints a Markdown table of the mean
MAPE over the folds of each split of the A100/H100 steps, and of the other files predicted from the A100/H100 fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.hard_rooflines import HardRooflines
from benchmarks.planted import catalog
from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from srfa.features import FeatureMatrix
from srfa.fit.terms import COMPUTE, MEMORY, Term
from srfa.folds import Split, split_folds
from srfa.observations import Observations, load_observations
from srfa.operator_kernels import LINEAR
from srfa.operators import KINDS, Constants, constants
from srfa.ragged import IntArray
from srfa.roofline import Place
from srfa.routing import RankLoad, busiest_rank
from srfa.speed_of_light import possible_steps

SRFA = estimator_named("srfa")
CONFIG = FitConfig(huber_delta=(0.1,), convex_max_rows=1_000)
"""One setting, so that no search hides what a term does."""
SPLITS: dict[str, Split] = {
    "GPU": "leave-one-gpu-out",
    "model": "leave-one-model-out",
    "TP": "leave-one-tp-out",
    "workload": "leave-one-workload-out",
    "dense-MoE": "dense-to-moe",
    "MoE-dense": "moe-to-dense",
    "EP": "ep1-to-ep",
}
OTHERS = {
    "RTX": "steps_rtxpro6000_mixed.parquet",
    "Splitwise": "steps_splitwise_llama2_70b.parquet",
    "traces": "steps_h100_vllm_traces.parquet",
}
WORTH_POINTS = 0.1
_REFERENCE_CYCLE_US = 1.0 / 1_500.0
_TINY_LOG_SD = 1e-4


@dataclass(frozen=True, slots=True)
class Ablation:
    """One thing left out: what is patched while features are computed and fits are made, or a column set to zero."""

    name: str
    patches: tuple[tuple[str, object], ...] = ()
    zeroed: str | None = None

    def features(self, observations: Observations) -> FeatureMatrix:
        """Return the features without it."""
        features = SRFA.features(observations, catalog())
        if self.zeroed is None:
            return features
        linear = features.blocks["linear"]
        values = linear.values * np.array([name != self.zeroed for name in linear.names])
        return replace(features, blocks={**features.blocks, "linear": replace(linear, values=values)})


def ablations() -> Iterator[Ablation]:
    """Yield the whole model, then each thing left out."""
    yield Ablation("nothing")
    for name, _ in LINEAR:
        yield Ablation(f"term {name}", zeroed=name)
    for block, terms in (("memory", MEMORY), ("compute", COMPUTE)):
        for term in terms:
            held = _held(terms, term.name)
            yield Ablation(f"{block} {term.name} held at its prior", _patched("estimators.srfa", {block.upper(): held}))
    for position, kind in enumerate(KINDS):
        yield Ablation(f"bend of {kind}", _hard(frozenset({position})))
    yield Ablation("every bend", _hard(frozenset(range(len(KINDS)))))
    yield _of_facts("tiles and waves", _without_tiles)
    yield _of_facts("padding of mixed batches", _without_padding)
    yield _of_facts("latencies in cycles (microseconds)", _in_microseconds)
    yield Ablation("busiest rank (balanced)", _patched("fused_moe", {"busiest_rank": _balanced}))
    tuned = {"is_tuned": _always_tuned}
    yield Ablation("tuned-kernel fact", (*_patched("fused_moe", tuned), *_patched("operators", tuned)))
    yield Ablation("deviations of GPUs", _patched("estimators.srfa", {"DEVIATION_LOG_SD": _TINY_LOG_SD}))


def _patched(module: str, values: dict[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple((f"srfa.{module}.{name}", value) for name, value in values.items())


def _held(terms: tuple[Term, ...], name: str) -> tuple[Term, ...]:
    return tuple(replace(term, log_sd=_TINY_LOG_SD) if term.name == name else term for term in terms)


def _hard(kinds: frozenset[int]) -> tuple[tuple[str, object], ...]:
    of = HardRooflines(kinds)
    fitted = {name: getattr(of, name) for name in ("loss_and_slopes", "loss_and_curvature", "tangents")}
    return (*_patched("fit.physical", fitted), *_patched("estimators.srfa", {"predicted_us": of.predicted_us}))


def _of_facts(name: str, change: Callable[[Constants], None]) -> Ablation:
    def changed(where: tuple[Place, ...]) -> Constants:
        of = constants(where)
        change(of)
        return of

    return Ablation(name, _patched("estimators.srfa", {"constants": changed}))


def _without_tiles(of: Constants) -> None:
    of.facts["is_gpu"] = 0.0


def _without_padding(of: Constants) -> None:
    of.facts["mixed_pair_us"] = of.facts["decode_pair_us"]


def _in_microseconds(of: Constants) -> None:
    of.facts["collective_cycles_us"] *= _REFERENCE_CYCLE_US / of.facts["cycle_us"]
    of.facts["cycle_us"] = _REFERENCE_CYCLE_US


def _balanced(_: str | None, experts: int, top_k: int, ranks: int) -> RankLoad:
    return busiest_rank("balanced", experts, top_k, ranks)


def _always_tuned(_: Place) -> bool:
    return True


def errors_without(ablation: Ablation, main_steps: Observations, others: dict[str, Observations]) -> dict[str, float]:
    """Return the MAPE in percent of each split, pooled, and of each other file from the fit of the main one."""
    with ExitStack() as stack:
        for target, value in ablation.patches:
            stack.enter_context(patch(target, value))
        features = ablation.features(main_steps)
        found = {}
        for name, split in SPLITS.items():
            folds = split_folds(main_steps, catalog(), split)
            found[name] = float(np.mean([_mape(features, fold.train, features.take(fold.test)) for fold in folds]))
        everything = np.arange(features.n_steps)
        tested = {"pooled": features, **{name: ablation.features(steps) for name, steps in others.items()}}
        return found | {name: _mape(features, everything, test) for name, test in tested.items()}


def _mape(features: FeatureMatrix, train: IntArray, test: FeatureMatrix) -> float:
    coefficients = SRFA.fit(features.take(train), CONFIG)
    return 100.0 * float(np.mean(np.abs(SRFA.predict(coefficients, test) / test.step_time_us - 1.0)))


def main(folder: Path) -> None:
    """Print the table, a line as soon as it is known, and what is worth nothing on any split."""
    main_file = folder / "steps_a100_h100.parquet"
    if not main_file.is_file():
        print(f"{main_file} is not there; nothing to measure (see {folder}/README.md)")
        return
    shelf = catalog()
    main_steps, _ = possible_steps(load_observations([main_file]), shelf)
    others = {
        name: possible_steps(load_observations([folder / file]), shelf)[0]
        for name, file in OTHERS.items()
        if (folder / file).is_file()
    }
    columns = [*SPLITS, "pooled", *others]
    print(f"| without | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    whole: dict[str, float] = {}
    worthless = []
    for ablation in ablations():
        found = errors_without(ablation, main_steps, others)
        whole = whole or found
        print(f"| {ablation.name} | {' | '.join(_cell(found[name], whole[name]) for name in columns)} |", flush=True)
        if found is not whole and all(abs(found[name] - whole[name]) < WORTH_POINTS for name in columns):
            worthless.append(ablation.name)
    print(f"\nLess than {WORTH_POINTS} points on every split: {', '.join(worthless) or 'none'}")


def _cell(mape: float, whole: float) -> str:
    return f"{mape:.1f}" if mape == whole else f"{mape:.1f} ({mape - whole:+.1f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data"))
