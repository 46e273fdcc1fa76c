import numpy as np
import pytest
from pydantic import ValidationError

from srfa.coefficients import FitConfig
from srfa.fit.search import choose_penalty, choose_setting, settings
from tests.fit.test_softplus import planted


def test_the_grid_is_the_product_of_the_settings():
    assert len(settings(FitConfig())) == 27


def test_a_single_setting_is_taken_without_search():
    config = FitConfig(lambda_gamma=(0.5,), lambda_beta=(0.25,), huber_delta=(0.1,))
    case, _ = planted(0)
    penalty = choose_penalty(case, np.zeros(400, dtype=np.int64), config)
    assert (penalty.lambda_gamma, penalty.lambda_beta, penalty.huber_delta) == (0.5, 0.25, 0.1)


def test_a_ridge_that_ruins_the_fit_is_not_chosen():
    case, _ = planted(0)
    config = FitConfig(lambda_gamma=(1e-6, 1e4), lambda_beta=(1e-6, 1e4), huber_delta=(0.1,), folds=3)
    penalty = choose_penalty(case, np.arange(400) % 6, config)
    assert (penalty.lambda_gamma, penalty.lambda_beta) == (1e-6, 1e-6)


def test_an_adaptive_threshold_follows_the_spread_of_the_residuals():
    config = FitConfig(lambda_gamma=(1e-6,), lambda_beta=(1e-6,), huber_delta=(), huber_delta_iqr=(1.5,))
    calm, noisy = (choose_penalty(planted(0, noise)[0], np.zeros(400, dtype=int), config) for noise in (0.02, 0.1))
    assert calm.huber_delta == pytest.approx(1.5 * 1.349 * 0.02, rel=0.4)
    assert noisy.huber_delta == pytest.approx(1.5 * 1.349 * 0.1, rel=0.4)


def test_data_without_noise_get_the_smallest_threshold_not_zero():
    assert settings(FitConfig(huber_delta=(), huber_delta_iqr=(1.5,)), residual_iqr=0.0)[0].huber_delta == 0.001


def test_adaptive_thresholds_join_the_fixed_ones():
    config = FitConfig(lambda_gamma=(1.0,), lambda_beta=(1.0,), huber_delta=(0.1,), huber_delta_iqr=(1.5, 3.0))
    assert [one.huber_delta for one in settings(config, residual_iqr=0.2)] == pytest.approx([0.1, 0.3, 0.6])


def test_settings_without_any_threshold_are_refused():
    with pytest.raises(ValidationError, match="huber_delta and huber_delta_iqr are both empty"):
        FitConfig(huber_delta=())


def test_any_number_of_workers_sees_the_same_folds_and_chooses_the_same():
    labels = np.random.default_rng(0).lognormal(size=60)
    seen = {}

    for n_workers in (1, 3):
        folds = seen.setdefault(n_workers, [])

        def scores(train, test, folds=folds):
            folds.append((tuple(train), tuple(test)))
            return np.array([2.0, 1.0, 3.0])

        config = FitConfig(n_workers=n_workers)
        assert choose_setting(("a", "b", "c"), labels, np.arange(60) % 7, config=config, scores=scores) == "b"
    assert len(seen[1]) == 5
    assert sorted(seen[3]) == sorted(seen[1])


def test_the_number_of_workers_is_not_written_with_a_fit():
    assert "n_workers" not in FitConfig(n_workers=4).model_dump()
