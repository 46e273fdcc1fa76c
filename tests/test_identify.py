from dataclasses import dataclass

import numpy as np
import pytest

from srfa.candidate_jobs import LOADS, candidate_steps
from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.errors import UsageError
from srfa.estimators import ESTIMATORS
from srfa.features import Block, FeatureMatrix
from srfa.identify import Jacobian, candidate_jacobians, identify, jacobian
from srfa.provenance import provenance_of
from tests.planted import LinearEstimator


def coefficients(values, *, names=None, at_bound=None, units=None, block="b"):
    n = len(values)
    one = CoefficientBlock(
        names=names or tuple(f"p{k}" for k in range(n)),
        units=units or ("us",) * n,
        values=tuple(values),
        lower=(0.0,) * n,
        upper=(None,) * n,
        at_bound=at_bound or (False,) * n,
        scales=(2.0,) * n,
    )
    return Coefficients(estimator="planted", blocks={block: one}, converged=True, message="planted", config=FitConfig())


@dataclass(frozen=True)
class Sum:
    """``columns @ values + offset``."""

    offset: float = 0.0

    def predict(self, fitted, features):
        return features.blocks["b"].values @ np.array(fitted.blocks["b"].values) + self.offset


def matrix(columns, *, noise=0.0, values=None, n_jobs=10, seed=0):
    n = len(columns)
    rng = np.random.default_rng(seed)
    label = columns @ np.array(values if values is not None else np.ones(columns.shape[1]))
    label = label * np.exp(noise * rng.standard_normal(n))
    jobs = np.arange(n) % n_jobs
    names = tuple(f"p{k}" for k in range(columns.shape[1]))
    return FeatureMatrix(
        {"b": Block(names, ("us",) * len(names), columns)},
        label,
        tuple(map(str, range(n_jobs))),
        jobs,
        np.zeros(n, dtype=np.int64),
        (),
        np.zeros(n, dtype=np.int64),
    )


def random_columns(n_params, n_steps=400, seed=0):
    return np.random.default_rng(seed).lognormal(0, 1, (n_steps, n_params))


def identified(columns, values=None, *, noise=0.05, **more):
    features = matrix(columns, noise=noise, values=values)
    fitted = coefficients(values or [1.0] * columns.shape[1], **more)
    return identify(jacobian(Sum(), fitted, features), fitted, features.job_index)


def test_the_jacobian_of_a_sum_is_each_terms_share():
    columns, values = random_columns(3), [1.0, 2.0, 0.5]
    found = jacobian(Sum(), coefficients(values), matrix(columns, values=values))
    shares = columns * values / (columns @ values)[:, None]
    assert found.names == ("b.p0", "b.p1", "b.p2")
    assert found.values == pytest.approx(shares, abs=1e-7)
    assert found.values.sum(axis=1) == pytest.approx(np.ones(len(columns)), abs=1e-7)
    assert found.log_residual == pytest.approx(np.zeros(len(columns)), abs=1e-12)


def test_a_negative_coefficient_counts_by_its_size_and_one_of_zero_by_its_scale():
    columns = random_columns(2)
    found = jacobian(Sum(offset=100.0), coefficients([-0.5, 0.0]), matrix(columns))
    predicted = columns[:, 0] * -0.5 + 100.0
    assert found.values[:, 0] == pytest.approx(-0.5 * columns[:, 0] / predicted, rel=1e-5)
    assert found.values[:, 1] == pytest.approx(columns[:, 1] / 2.0 / predicted, rel=1e-3)


def test_an_estimator_without_named_coefficients_is_refused(planted, shipped):
    roofline = ESTIMATORS["roofline"]
    features = roofline.features(planted, shipped)
    with pytest.raises(UsageError, match="no named coefficients"):
        jacobian(roofline, roofline.fit(features, FitConfig()), features)


@pytest.mark.parametrize("block", ["queue_wait", "post", "between_steps", "wall_ratio"])
def test_coefficients_of_what_lies_outside_the_steps_are_not_asked_of_steps(block):
    fitted = coefficients([1.0])
    fitted = fitted.model_copy(update={"blocks": {**fitted.blocks, **coefficients([1.0], block=block).blocks}})
    assert jacobian(Sum(), fitted, matrix(random_columns(1))).names == ("b.p0",)


def test_predictions_that_are_not_positive_are_refused():
    with pytest.raises(UsageError, match="not positive"):
        jacobian(Sum(offset=-1e9), coefficients([1.0]), matrix(random_columns(1)))


def test_independent_columns_are_identified():
    found = identified(random_columns(3))
    assert found.weak == ()
    assert found.correlated == ()
    assert found.condition_number < 100
    assert all(one.variance_inflation < 10 and one.log_sd < 0.05 for one in found.parameters)


@pytest.mark.parametrize("jitter", [0.0, 1e-3])
def test_collinear_columns_are_found_by_name(jitter):
    columns = random_columns(4)
    columns[:, 2] = 3.0 * columns[:, 0] * np.exp(jitter * np.random.default_rng(5).standard_normal(len(columns)))
    found = identified(columns)
    assert [(one.first, one.second) for one in found.correlated] == [("b.p0", "b.p2")]
    assert found.correlated[0].correlation < -0.99
    assert found.groups == (("b.p0", "b.p2"),)
    assert set(found.weak) == {"b.p0", "b.p2"}
    assert found.condition_number > 1e4
    inflation = {one.name: one.variance_inflation for one in found.parameters}
    assert min(inflation["b.p0"], inflation["b.p2"]) > 1000 > max(inflation["b.p1"], inflation["b.p3"])


def test_variance_inflation_of_two_columns_by_hand():
    """Two columns of length 1 at cosine c: ``VIF = 1 / (1 - c^2)``."""
    cosine = 0.6
    values = np.array([[1.0, cosine], [0.0, np.sqrt(1 - cosine**2)]])
    found = Jacobian(("b.p0", "b.p1"), values, np.array([0.1, -0.1]))
    result = identify(found, coefficients([1.0, 1.0]), np.array([0, 1]))
    assert [one.variance_inflation for one in result.parameters] == pytest.approx([1 / (1 - 0.36)] * 2)
    assert result.condition_number == pytest.approx(1.6 / 0.4)


def test_a_parameter_no_step_depends_on_is_weak_and_one_at_its_bound_is_told():
    columns = random_columns(3)
    columns[:, 1] = 0.0
    found = identified(columns, at_bound=(True, False, False))
    flags = {one.name: (one.at_bound, one.weak) for one in found.parameters}
    assert flags == {"b.p0": (True, False), "b.p1": (False, True), "b.p2": (False, False)}
    assert found.parameters[1].variance_inflation == np.inf
    assert found.parameters[1].log_sd == pytest.approx(1.0)  # the prior: a factor of e


def test_the_bootstrap_spread_is_that_of_fits_to_new_data():
    """Least squares in logs on fresh noise, 200 times, against the linearised bootstrap of one data set."""
    columns, noise = random_columns(2, 300), 0.05
    found = identified(columns, noise=noise)
    shares = columns / columns.sum(axis=1)[:, None]
    rng = np.random.default_rng(1)
    fits = [np.linalg.lstsq(shares, noise * rng.standard_normal(300))[0] for _ in range(200)]
    assert [one.log_sd for one in found.parameters] == pytest.approx(np.std(fits, axis=0), rel=0.5)


def test_jobs_that_differ_widen_the_spread_beyond_that_of_their_steps():
    columns = random_columns(2)
    features = matrix(columns, noise=0.02)
    found = jacobian(Sum(), coefficients([1.0, 1.0]), features)
    effect = 0.1 * np.random.default_rng(2).standard_normal(10)[features.job_index]
    alike = Jacobian(
        found.names, found.values, found.log_residual + 0.1 * np.random.default_rng(2).standard_normal(400)
    )
    shared = Jacobian(found.names, found.values, found.log_residual + effect)
    spread = [
        identify(one, coefficients([1.0, 1.0]), features.job_index).parameters[0].log_sd for one in (alike, shared)
    ]
    assert spread[1] > 1.5 * spread[0]


def test_the_job_that_moves_a_weak_parameter_alone_helps_most():
    columns = random_columns(3)
    columns[:, 1] = 2.0 * columns[:, 0]
    features, fitted = matrix(columns, noise=0.05), coefficients([1.0, 1.0, 1.0])
    alone, more_of_the_same = np.zeros((50, 3)), jacobian(Sum(), fitted, features).values[:50]
    alone[:, 0] = 1.0
    found = identify(
        jacobian(Sum(), fitted, features),
        fitted,
        features.job_index,
        candidates={"same": more_of_the_same, "alone": alone},
    )
    for name in ("b.p0", "b.p1"):
        assert found.best_job(name).job == "alone"
        ranked = {one.job: one.variance_left for one in found.helpful if one.parameter == name}
        assert ranked["alone"] < 0.1
        assert 0.9 < ranked["same"] <= 1.0
    assert found.best_job("b.p2") is None


def test_candidates_cover_the_loads_and_the_kinds_of_place(planted, shipped):
    fitted = coefficients([1.0]).model_copy(update={"provenance": provenance_of(planted, {})})
    candidates = candidate_steps(fitted, shipped, n_steps=100)
    assert len(candidates) == 4 * len(LOADS)
    assert {steps.n_steps for steps in candidates.values()} == {100}
    short, long = candidates["prefill-heavy 3000/8, dense"], candidates["decode-heavy 32/1500, dense"]
    assert short.numbers("prefill_tokens").mean() > 20 * long.numbers("prefill_tokens").mean()
    for steps in candidates.values():
        assert (steps.numbers("prefill_tokens") <= 8192).all()
    spread = candidates["balanced 512/2048, EP > 1"]
    assert all(one.expert_parallel_size > 1 for one in spread.configurations)


def test_a_term_that_no_measured_step_touches_is_told_by_steps_that_do(planted, shipped):
    """The planted jobs have no EP: the seed form's EP term is weak, and a job with EP settles it."""
    seed = ESTIMATORS["srfa-seed"]
    features = seed.features(planted, shipped)
    fitted = seed.fit(features, FitConfig(huber_delta=(0.1,), lambda_gamma=(0.01,)))
    fitted = fitted.model_copy(update={"provenance": provenance_of(planted, {})})

    def jacobian_of(steps):
        return jacobian(seed, fitted, seed.features(steps, shipped))

    candidates = candidate_jacobians(jacobian_of, candidate_steps(fitted, shipped))
    found = identify(jacobian(seed, fitted, features), fitted, features.job_index, candidates=candidates)
    assert "fixed.ep_communication" in found.weak
    assert "EP > 1" in found.best_job("fixed.ep_communication").job


def test_equal_seeds_give_equal_results(planted, shipped):
    linear = LinearEstimator()
    features = linear.features(planted, shipped)
    fitted = linear.fit(features, FitConfig())
    found = jacobian(linear, fitted, features)
    assert identify(found, fitted, features.job_index) == identify(found, fitted, features.job_index)
