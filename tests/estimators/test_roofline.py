import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import UsageError
from srfa.estimators import estimator_named
from srfa.roofline import floor_us
from tests.steps import catalog, observations, random_steps

CATALOG = catalog()


def test_the_yardstick_never_undercuts_the_speed_of_light():
    seen = observations(random_steps(200))
    roofline = estimator_named("roofline")
    features = roofline.features(seen, CATALOG)
    predicted = roofline.predict(roofline.fit(features, FitConfig()), features)
    assert (predicted >= 0.8 * floor_us(seen, CATALOG)).all()
    assert np.isfinite(predicted).all()


def test_a_misspelt_estimator_is_named_with_a_suggestion():
    with pytest.raises(UsageError, match="unknown estimator 'srfa-sed'; did you mean 'srfa-seed'"):
        estimator_named("srfa-sed")


def test_a_prior_teaches_it_nothing(planted, shipped):
    roofline = estimator_named("roofline")
    features = roofline.features(planted, shipped)
    plain = roofline.fit(features, FitConfig())
    assert roofline.fit(features, FitConfig(), prior=plain) == plain
