"""``srfa``: every operator a smooth roofline, 20 positive parameters, and deviations of the GPUs and software it saw.

What it knows of physics is in :mod:`srfa.operators` (what a step moves and computes), what it knows before any
measurement in :mod:`srfa.fit.terms`. An unseen GPU deviates from nothing, or by what its microbenchmark measured.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.errors import CoefficientsError
from srfa.estimators.groups import Groups
from srfa.features import Block, FeatureMatrix, feature_matrix
from srfa.fit.explosion import LARGEST_CYCLES, LARGEST_RATIO, refuse_explosion
from srfa.fit.learned import learned_values
from srfa.fit.physical import LEAST_COMPUTE, LEAST_MEMORY, Layout, Prior, Setting, Task, solve
from srfa.fit.preparation import warmed_up
from srfa.fit.search import choose_setting
from srfa.fit.softplus import Solution
from srfa.fit.terms import COMPUTE, DEVIATION_LOG_SD, LINEAR_TERMS, MEMORY, SOFTWARE_LOG_SD, Term
from srfa.observations import Configuration, Observations
from srfa.operator_kernels import LINEAR, StepTotals
from srfa.operators import KINDS, constants, kind_of, operator_times, step_totals
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, bytes_per_us, per_step, place_of, places
from srfa.smooth_roofline import Factors, predicted_us, smooth_roofline
from srfa.step_kernel import step_us
from srfa.units import BYTES_PER_US_PER_TBPS

_GEMM = KINDS.index("gemm")
_LEAST_ROOFLINE = float(smooth_roofline(np.ones(1), np.zeros(1))[0])
"""R of a unit of memory time without compute: what a streaming product takes at factor one."""
_HOST = np.array([name.startswith("host_") for name, _ in LINEAR], dtype=np.float64)
_LARGEST = {unit: LARGEST_CYCLES if "cycle" in unit else LARGEST_RATIO for _, unit in LINEAR if unit.startswith("us ")}
_HUBER_DELTA = 0.1
"""Where the settings name no threshold of their own; adaptive ones (``huber_delta_iqr``) are not used here."""
_FIRST = np.zeros(1, dtype=np.int64)
_SHARED = ("memory", "compute", "linear")
_Arrays = tuple[FloatArray, FloatArray, FloatArray]
_DEVIATING = ("gpu_memory", "gpu_compute", "software_host")


class SrfaEstimator:
    """The product's own estimator; ``docs/estimators.md`` has its formula and its terms."""

    name = "srfa"

    def features(self, observations: Observations, catalog: Catalog) -> FeatureMatrix:
        """Compute the blocks ``memory`` and ``compute`` (an operator a column), ``linear``, and ``measured``.

        ``measured`` holds datasheet rate over microbenchmark rate of memory and matrices, 0 where none was measured.
        """
        where = places(observations, catalog)
        times = operator_times(step_totals(observations), observations.configuration_index, constants(where))
        units = ("us",) * len(times.operators)
        rates = [per_step(observations, where, fact) for fact in (_memory_excess, _compute_excess)]
        blocks = {
            "memory": Block(times.operators, units, times.memory_us),
            "compute": Block(times.operators, units, times.compute_us),
            "linear": Block(tuple(name for name, _ in LINEAR), tuple(unit for _, unit in LINEAR), times.linear),
            "measured": Block(("memory", "compute"), ("1", "1"), np.column_stack(rates)),
        }
        features = feature_matrix(observations, blocks)
        resolved = tuple(replace(place.configuration, gpu=place.gpu.name) for place in where)
        return replace(features, configurations=resolved)

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Search the settings by jobs, start convex, refine by L-BFGS-B; a prior takes the place of the shipped one.

        Raises
        ------
        FitError
            Fewer than 20 steps are left, with a prior 10; or a term has exploded, which the text names.
        """
        kept = warmed_up(features, config, prior=prior)
        groups = Groups.of(kept)
        layout = Layout(len(KINDS), _HOST, len(groups.gpus), len(groups.softwares))
        task = Task(groups.work(kept), kept.step_time_us, layout, _prior(groups, kept, prior))
        setting = _chosen(task, kept.job_index, config)
        fitted = _coefficients(task, groups, solve(task, setting, config), setting, config)
        refuse_explosion(fitted, largest=_LARGEST)
        return _with_groups_of(prior, fitted) if prior else fitted

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, shape ``(n_steps,)``."""
        groups = Groups.of(features)
        return predicted_us(groups.work(features), _factors(coefficients, groups, _excess(groups, features)))


class StepClock:
    """Predicts single steps of one configuration: what a simulator asks, some hundred thousand times a second.

    Features and formula are those of :class:`SrfaEstimator`, compiled into one call. A clock has room for one step at a
    time: threads need one each.
    """

    def __init__(self, coefficients: Coefficients, configuration: Configuration, catalog: Catalog) -> None:
        place = place_of(configuration, catalog)
        of = constants((place,))
        groups = Groups((place.gpu.name,), (configuration.software_version or "",), _FIRST, _FIRST)
        measured = np.array([[_memory_excess(place), _compute_excess(place)]])
        factors = _factors(coefficients, groups, measured)
        kind = np.array([kind_of(name) for name in of.operators], dtype=np.int64)
        self._constants = (of.gemm_facts[0], of.facts[0], of.loads[0])
        self._factors = (factors.memory[0], factors.compute[0], factors.linear[0])
        self._kind = kind
        self._scratch = (np.zeros(len(kind)), np.zeros(len(kind)), np.zeros(len(LINEAR)))

    def step_time_us(self, totals: StepTotals) -> float:
        """Return the predicted time of a step with these totals, microseconds."""
        return step_us(totals, self._constants, self._kind, self._factors, self._scratch)

    @property
    def compiled_arguments(self) -> tuple[Any, IntArray, _Arrays, _Arrays]:
        """What :func:`srfa.step_kernel.step_us` takes beside the totals; the scratch is this clock's own."""
        return self._constants, self._kind, self._factors, self._scratch


def _factors(coefficients: Coefficients, groups: Groups, excess: FloatArray) -> Factors:
    """Return the factors of each group: as learned, as a microbenchmark says, or those of any GPU."""
    shared = np.concatenate([_log(coefficients, name) for name in _SHARED])
    layout = Layout(len(KINDS), _HOST, len(groups.gpus), len(groups.softwares))
    return layout.factors(np.concatenate([shared, _deviations(coefficients, groups, excess, shared)]))


def _memory_excess(place: Place) -> float:
    measured = place.gpu.microbenchmark and place.gpu.microbenchmark.weight_stream_tbps
    return bytes_per_us(place) / (measured * BYTES_PER_US_PER_TBPS) if measured else 0.0


def _compute_excess(place: Place) -> float:
    """Of 16-bit products, whatever this configuration multiplies in: a fact of the GPU."""
    measured = place.gpu.microbenchmark and place.gpu.microbenchmark.gemm_tflops
    return place.gpu.datasheet.bf16_tflops / measured if measured else 0.0


def _log(coefficients: Coefficients, name: str) -> FloatArray:
    names = tuple(term.name for term in {"memory": MEMORY, "compute": COMPUTE, "linear": LINEAR_TERMS}[name])
    return np.log(learned_values(coefficients, name, names))


def _deviations(known: Coefficients | None, groups: Groups, excess: FloatArray, shared: FloatArray) -> FloatArray:
    """Logarithms of the groups' deviations: as learned; else as measured; else none."""
    measured = _measured(excess, shared[: len(KINDS)], shared[len(KINDS) : 2 * len(KINDS)])
    members = (groups.gpus, groups.gpus, groups.softwares)
    parts = []
    for block, names, otherwise in zip(_DEVIATING, members, (*measured, np.zeros(len(members[2]))), strict=True):
        learned = _learned_deviations(known, block)
        parts += [learned.get(name, fallback) for name, fallback in zip(names, otherwise, strict=True)]
    return np.array(parts, dtype=np.float64)


def _learned_deviations(known: Coefficients | None, block: str) -> dict[str, float]:
    """Logarithm of each deviation a fit knows, by the group's name."""
    if known is None:
        return {}
    if block not in known.blocks:
        raise CoefficientsError(f"coefficients of srfa: block {block!r} is missing; fit again with this version")
    learned = known.blocks[block]
    return {name: float(np.log(value)) for name, value in zip(learned.names, learned.values, strict=True)}


def _excess(groups: Groups, features: FeatureMatrix) -> FloatArray:
    """Datasheet over measured rate of memory and matrices of each GPU, 0 where none is known, shape ``(n_gpus, 2)``."""
    return features.blocks["measured"].values[np.unique(groups.gpu, return_index=True)[1]]


def _measured(excess: FloatArray, memory: FloatArray, compute: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Deviations that microbenchmarks tell: how much slower than products in general each GPU's were."""
    in_general = np.array([_LEAST_ROOFLINE * np.exp(memory[_GEMM]), np.exp(compute[_GEMM])])
    deviations = np.log(np.where(excess > 0, excess / in_general, 1.0))
    return deviations[:, 0], deviations[:, 1]


def _prior(groups: Groups, features: FeatureMatrix, source: Coefficients | None) -> Prior:
    """Return the shipped prior, or the one that the source's fit gives: all parameters, and the deviations it knows."""
    terms: tuple[Term, ...] = (*MEMORY, *COMPUTE, *LINEAR_TERMS)
    spread = [*(term.log_sd for term in terms), *[DEVIATION_LOG_SD] * (2 * len(groups.gpus))]
    shared = np.log([term.mean for term in terms])
    if source:
        shared = np.concatenate([_log(source, name) for name in _SHARED])
    deviations = _deviations(source, groups, _excess(groups, features), shared)
    return Prior(np.concatenate([shared, deviations]), np.array([*spread, *[SOFTWARE_LOG_SD] * len(groups.softwares)]))


def _chosen(task: Task, job_index: IntArray, config: FitConfig) -> Setting:
    """Search where several weights of the prior are given; the threshold alone moves held-out errors by 0.02 points."""
    deltas = config.huber_delta or (_HUBER_DELTA,)
    deltas = deltas if len(config.prior_weight) > 1 else (deltas[len(deltas) // 2],)
    grid = tuple(Setting(weight, delta) for weight, delta in product(config.prior_weight, deltas))

    def scores(train: IntArray, test: IntArray) -> FloatArray:
        seen, unseen = task.take(train), task.take(test)
        fits = [task.layout.factors(solve(seen, setting, config).theta) for setting in grid]
        errors = [predicted_us(unseen.work, factors) / unseen.step_time_us - 1.0 for factors in fits]
        return np.asarray(np.abs(np.array(errors)).mean(axis=1))

    return choose_setting(grid, task.step_time_us, job_index, config=config, scores=scores)


def _coefficients(task: Task, groups: Groups, solution: Solution, setting: Setting, config: FitConfig) -> Coefficients:
    memory, compute, linear, *deviations = task.layout.parts(solution.theta)
    units = tuple(unit for _, unit in LINEAR)
    blocks = {
        "memory": _block(MEMORY, memory, ("us",) * len(MEMORY), LEAST_MEMORY),
        "compute": _block(COMPUTE, compute, ("us",) * len(COMPUTE), LEAST_COMPUTE),
        "linear": _block(LINEAR_TERMS, linear, units, 0.0),
    }
    for name, members, values in zip(_DEVIATING, (groups.gpus, groups.gpus, groups.softwares), deviations, strict=True):
        spread = SOFTWARE_LOG_SD if name == "software_host" else DEVIATION_LOG_SD
        terms = tuple(Term(member, 1.0, spread) for member in members)
        blocks[name] = _block(terms, values, ("us",) * len(terms), 0.0)
    return Coefficients(
        estimator="srfa",
        blocks=blocks,
        chosen={
            "prior_weight": setting.prior_weight,
            "huber_delta": setting.huber_delta,
            "loss": solution.loss,
            "start_loss": solution.start_loss,
            "n_iterations": float(solution.n_iterations),
        },
        converged=solution.converged,
        message=solution.message,
        config=config,
    )


def _with_groups_of(source: Coefficients, fitted: Coefficients) -> Coefficients:
    """Keep the deviations of the source's groups that none of the steps belongs to: a refit forgets no GPU."""
    blocks = dict(fitted.blocks)
    for name in _DEVIATING:
        members = _learned_deviations(source, name) | _learned_deviations(fitted, name)
        terms = tuple(Term(member, 1.0, 1.0) for member in sorted(members))
        logs = np.array([members[term.name] for term in terms], dtype=np.float64)
        blocks[name] = _block(terms, logs, ("us",) * len(terms), 0.0)
    return fitted.model_copy(update={"blocks": blocks})


def _block(terms: tuple[Term, ...], logs: FloatArray, units: tuple[str, ...], least: float) -> CoefficientBlock:
    values = np.exp(logs)
    return CoefficientBlock(
        names=tuple(term.name for term in terms),
        units=units,
        values=tuple(float(value) for value in values),
        lower=(least,) * len(terms),
        upper=(None,) * len(terms),
        at_bound=tuple(bool(value <= least * (1.0 + 1e-9)) for value in values),
        scales=tuple(1.0 / term.mean for term in terms),
    )
