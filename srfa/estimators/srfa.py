"""``srfa``: every operator a smooth roofline, 21 positive parameters, and deviations of the GPUs and software it saw.

What it knows of physics is in :mod:`srfa.operators` (what a step moves and computes), what it knows before any
measurement in :mod:`srfa.fit.terms`. An unseen GPU deviates from nothing, or by what its microbenchmark measured.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from srfa.catalog import Catalog
from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.estimators.groups import Groups
from srfa.features import Block, FeatureMatrix, feature_matrix
from srfa.fit.learned import learned_values
from srfa.fit.physical import LEAST_COMPUTE, LEAST_MEMORY, Layout, Prior, Setting, Task, solve
from srfa.fit.preparation import warmed_up
from srfa.fit.search import choose_setting
from srfa.fit.softplus import Solution
from srfa.fit.terms import COMPUTE, DEVIATION_LOG_SD, LINEAR_TERMS, MEMORY, SOFTWARE_LOG_SD, Term
from srfa.observations import Observations
from srfa.operator_kernels import LINEAR
from srfa.operators import KINDS, constants, operator_times, step_totals
from srfa.ragged import FloatArray, IntArray
from srfa.roofline import Place, bytes_per_us, flops_per_us, per_step, places
from srfa.smooth_roofline import Factors, predicted_us, smooth_roofline
from srfa.units import BYTES_PER_US_PER_TBPS, FLOPS_PER_US_PER_TFLOPS

_GEMM = KINDS.index("gemm")
_LEAST_ROOFLINE = float(smooth_roofline(np.ones(1), np.zeros(1))[0])
"""R of a unit of memory time without compute: what a streaming product takes at factor one."""
_HOST = np.array([name.startswith("host_") for name, _ in LINEAR], dtype=np.float64)
_SHARED = ("memory", "compute", "linear")
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
        return feature_matrix(observations, blocks)

    def fit(self, features: FeatureMatrix, config: FitConfig, *, prior: Coefficients | None = None) -> Coefficients:
        """Search the settings by jobs, start convex, refine by L-BFGS-B; a prior takes the place of the shipped one.

        Raises
        ------
        FitError
            Fewer than 20 steps are left, or 10 with a prior.
        """
        kept = warmed_up(features, config, prior=prior)
        groups = Groups.of(kept)
        layout = Layout(len(KINDS), _HOST, len(groups.gpus), len(groups.softwares))
        task = Task(groups.work(kept), kept.step_time_us, layout, _prior(groups, kept, prior))
        setting = _chosen(task, kept.job_index, config)
        return _coefficients(task, groups, solve(task, setting, config), setting, config)

    def predict(self, coefficients: Coefficients, features: FeatureMatrix) -> FloatArray:
        """Return the predicted step time in microseconds, shape ``(n_steps,)``."""
        groups = Groups.of(features)
        return predicted_us(groups.work(features), factors_of(coefficients, groups, features))


def factors_of(coefficients: Coefficients, groups: Groups, features: FeatureMatrix) -> Factors:
    """Return the factors of the groups in ``features``: learned, from a microbenchmark, or those of any GPU."""
    shared = np.concatenate([_log(coefficients, name) for name in _SHARED])
    layout = Layout(len(KINDS), _HOST, len(groups.gpus), len(groups.softwares))
    return layout.factors(np.concatenate([shared, _deviations(coefficients, groups, features)]))


def _memory_excess(place: Place) -> float:
    measured = place.gpu.microbenchmark and place.gpu.microbenchmark.weight_stream_tbps
    return bytes_per_us(place) / (measured * BYTES_PER_US_PER_TBPS) if measured else 0.0


def _compute_excess(place: Place) -> float:
    measured = place.gpu.microbenchmark and place.gpu.microbenchmark.gemm_tflops
    return flops_per_us(place) / (measured * FLOPS_PER_US_PER_TFLOPS) if measured else 0.0


def _log(coefficients: Coefficients, name: str) -> FloatArray:
    names = tuple(term.name for term in {"memory": MEMORY, "compute": COMPUTE, "linear": LINEAR_TERMS}[name])
    return np.log(learned_values(coefficients, name, names))


def _deviations(coefficients: Coefficients, groups: Groups, features: FeatureMatrix) -> FloatArray:
    """Logarithms of the groups' deviations: as learned; else as measured; else none."""
    measured = _measured(groups, features, _log(coefficients, "memory"), _log(coefficients, "compute"))
    parts = []
    for block, names, otherwise in zip(
        _DEVIATING,
        (groups.gpus, groups.gpus, groups.softwares),
        (*measured, np.zeros(len(groups.softwares))),
        strict=True,
    ):
        learned = coefficients.blocks[block]
        known = dict(zip(learned.names, np.log(learned.values) if learned.values else (), strict=True))
        parts += [known.get(name, fallback) for name, fallback in zip(names, otherwise, strict=True)]
    return np.array(parts, dtype=np.float64)


def _measured(
    groups: Groups, features: FeatureMatrix, memory: FloatArray, compute: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Deviations that microbenchmarks tell: how much slower than products in general each GPU's were."""
    first = np.unique(groups.gpu, return_index=True)[1]
    excess = features.blocks["measured"].values[first]
    in_general = np.array([_LEAST_ROOFLINE * np.exp(memory[_GEMM]), np.exp(compute[_GEMM])])
    deviations = np.log(np.where(excess > 0, excess / in_general, 1.0))
    return deviations[:, 0], deviations[:, 1]


def _prior(groups: Groups, features: FeatureMatrix, source: Coefficients | None) -> Prior:
    """Return the shipped prior, or the one that the source's fit gives: all parameters, and the deviations it knows."""
    terms: tuple[Term, ...] = (*MEMORY, *COMPUTE, *LINEAR_TERMS)
    n_deviations = 2 * len(groups.gpus) + len(groups.softwares)
    spread = [*(term.log_sd for term in terms), *[DEVIATION_LOG_SD] * (2 * len(groups.gpus))]
    log_sd = np.array([*spread, *[SOFTWARE_LOG_SD] * len(groups.softwares)])
    if source:
        shared = np.concatenate([_log(source, name) for name in _SHARED])
        return Prior(np.concatenate([shared, _deviations(source, groups, features)]), log_sd)
    shared = np.log([term.mean for term in terms])
    n_kinds = len(KINDS)
    measured = _measured(groups, features, shared[:n_kinds], shared[n_kinds : 2 * n_kinds])
    deviations = np.concatenate([*measured, np.zeros(n_deviations)])[:n_deviations]
    return Prior(np.concatenate([shared, deviations]), log_sd)


def _chosen(task: Task, job_index: IntArray, config: FitConfig) -> Setting:
    grid = tuple(Setting(weight, delta) for weight, delta in product(config.prior_weight, config.huber_delta))

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
        "memory": _block(MEMORY, memory, ("1",) * len(MEMORY), LEAST_MEMORY),
        "compute": _block(COMPUTE, compute, ("1",) * len(COMPUTE), LEAST_COMPUTE),
        "linear": _block(LINEAR_TERMS, linear, units, 0.0),
    }
    for name, members, values in zip(_DEVIATING, (groups.gpus, groups.gpus, groups.softwares), deviations, strict=True):
        spread = SOFTWARE_LOG_SD if name == "software_host" else DEVIATION_LOG_SD
        terms = tuple(Term(member, 1.0, spread) for member in members)
        blocks[name] = _block(terms, values, ("1",) * len(terms), 0.0)
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
