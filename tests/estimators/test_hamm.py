import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
HAMM = estimator_named("hamm")
QUICK = FitConfig(lambda_gamma=(1e-8,), lambda_beta=(1e-10,), winsorise_quantile=1.0)
COMPUTE = np.array([7.5, 0.01, 0.3, 0.0, 0.25, 0.0, 0.1, 0.2])


def features_of(rows):
    return HAMM.features(observations(rows), CATALOG)


def planted(n_steps, seed=0, gamma=(2_000.0, 3.0, 0.0, 0.0)):
    features = features_of(random_steps(n_steps, seed=seed))
    label = features.blocks["fixed"].values @ np.array(gamma) + np.exp(features.blocks["compute"].values @ COMPUTE)
    return dataclasses.replace(features, step_time_us=label)


def test_features_of_one_step_by_hand():
    row = step(
        prefill_new_tokens=[100], prefill_context_tokens=[924], decode_context_tokens=[50, 150], kv_usage_ratio=0.4
    )
    block = features_of([row]).blocks["compute"]
    found = dict(zip(block.names, block.values[0], strict=True))
    body = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert found["prefill"] == pytest.approx(np.log(101) * 2 * body / 989e6)
    assert found["longest_prefill"] == 1.0
    assert found["decode"] == pytest.approx(np.log(3) * 100 * (2 * 8 * 128 * 2 * 32) / 3.35e6)
    assert found["kv_usage"] == 0.4
    assert (found["moe"], found["moe_log_tokens"]) == (0.0, 0.0)


def test_without_overheads_planted_compute_is_recovered():
    features = planted(600, gamma=(0.0, 0.0, 0.0, 0.0))
    learned = HAMM.fit(features, QUICK.model_copy(update={"lambda_gamma": (1e6,)}))
    unseen = planted(200, seed=9, gamma=(0.0, 0.0, 0.0, 0.0))
    assert HAMM.predict(learned, unseen) == pytest.approx(unseen.step_time_us, rel=1e-3)
    assert learned.blocks["compute"]["moe_log_tokens"] == pytest.approx(0.1, rel=0.05)


def test_with_overheads_unseen_steps_are_predicted_although_two_stages_cannot_tell_them_from_compute():
    learned = HAMM.fit(planted(800), QUICK)
    unseen = planted(200, seed=9)
    error = np.abs(HAMM.predict(learned, unseen) / unseen.step_time_us - 1)
    assert error.mean() < 0.15


def test_overheads_are_non_negative_and_below_every_step():
    features = planted(400)
    learned = HAMM.fit(features, QUICK)
    gamma = np.array(learned.blocks["fixed"].values)
    assert gamma.min() >= 0
    assert gamma.max() > 0
    assert (features.blocks["fixed"].values @ gamma <= 0.951 * features.step_time_us).all()


def test_the_moe_correction_is_shared_and_absent_without_moe_data():
    dense = features_of(random_steps(100, model="meta-llama/Llama-3.1-8B"))
    learned = HAMM.fit(dense, QUICK)
    assert learned.blocks["compute"]["moe"] == 0.0
    assert learned.blocks["compute"]["moe_log_tokens"] == 0.0


def test_an_exponent_far_outside_its_data_ends_at_an_hour():
    learned = HAMM.fit(planted(200), QUICK)
    compute = learned.blocks["compute"].model_copy(update={"values": (1e4, *[0.0] * 7)})
    blocks = {**learned.blocks, "compute": compute}
    predicted = HAMM.predict(learned.model_copy(update={"blocks": blocks}), features_of([step()]))
    assert predicted[0] == pytest.approx(3.6e9, rel=1e-3)
