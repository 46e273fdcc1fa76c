import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from srfa.estimators.lacm import model_and_gpu
from srfa.fit.ridge import LOG_US_LIMITS
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
LACM = estimator_named("lacm")
QUICK = FitConfig(lambda_beta=(1e-10,), winsorise_quantile=1.0)
TRUTH = np.array([8.0, 0.02, 0.01, 0.03, -0.2, 0.0005, 0.1, 0.4, 0.0, 0.0])


def features_of(rows):
    return LACM.features(observations(rows), CATALOG)


def planted(n_steps, seed=0):
    features = features_of(random_steps(n_steps, seed=seed))
    return dataclasses.replace(features, step_time_us=np.exp(features.blocks["log_step"].values @ TRUTH))


def test_it_has_six_features_two_of_moe_and_one_each_of_ep_and_offload():
    assert features_of([step()]).blocks["log_step"].names == (
        "intercept", "prefill", "decode", "kv_blocks", "log_batch", "tp_communication",
        "router", "expert_imbalance", "ep_communication", "cpu_offload",
    )  # fmt: skip


def test_features_of_one_step_by_hand():
    row = step(prefill_new_tokens=[30], prefill_context_tokens=[0], decode_context_tokens=[100, 30], block_size=16)
    block = features_of([row]).blocks["log_step"]
    found = dict(zip(block.names, block.values[0], strict=True))
    body = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    kv_bytes = 2 * 8 * 128 * 2 * 32
    assert found["prefill"] == pytest.approx(np.log(31) * 2 * body / 989e6)
    assert found["decode"] == pytest.approx(np.log(3) * 2 * body / 989e6)
    assert found["kv_blocks"] == pytest.approx(np.log(1 + 160 / 16) * 16 * kv_bytes / 3.35e6)
    assert found["log_batch"] == pytest.approx(np.log(4))


def test_the_expected_imbalance_comes_from_the_configuration():
    row = step(model="mistralai/Mixtral-8x7B-v0.1", tensor_parallel_size=4, decode_context_tokens=[9] * 24)
    block = features_of([row]).blocks["log_step"]
    assert block.values[0, block.names.index("expert_imbalance")] == pytest.approx(1 + np.sqrt(6 / (2 * 24)))


def test_planted_coefficients_are_recovered_and_predict_unseen_steps():
    learned = LACM.fit(planted(600), QUICK)
    unseen = planted(200, seed=9)
    assert LACM.predict(learned, unseen) == pytest.approx(unseen.step_time_us, rel=1e-3)
    assert learned.blocks["log_step"]["prefill"] == pytest.approx(0.02, rel=0.01)


def test_a_larger_batch_may_make_a_step_cheaper():
    """The planted effect of the batch is negative: non-negative coefficients could not follow it."""
    assert LACM.fit(planted(600), QUICK).blocks["log_step"]["log_batch"] == pytest.approx(-0.2, rel=0.02)


def test_a_single_coefficient_cannot_be_extrapolated_beyond_an_hour():
    learned = LACM.fit(planted(200), QUICK)
    far = features_of([step(cpu_offload_gb=1e6), step()])
    pushed = learned.blocks["log_step"].model_copy(update={"values": (8.0, *[0.0] * 8, 1.0)})
    predicted = LACM.predict(learned.model_copy(update={"blocks": {"log_step": pushed}}), far)
    assert predicted == pytest.approx([np.exp(LOG_US_LIMITS[1]), np.exp(8.0)])


def test_the_groups_held_out_are_pairs_of_model_and_gpu():
    groups = model_and_gpu(features_of(random_steps(40)))
    assert len(np.unique(groups)) == 4
