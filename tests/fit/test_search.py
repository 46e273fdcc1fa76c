import numpy as np

from srfa.coefficients import FitConfig
from srfa.fit.search import choose_penalty, settings
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
