import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
NRRL = estimator_named("nrrl")
QUICK = FitConfig(lambda_beta=(1e-10,), winsorise_quantile=1.0)
TRUTH = np.array([800.0, 1.6, 2.0, 1.4, 1.2, 3.0, 1.3, 200.0, 5_000.0, 900.0, 500.0, 2.0])


def features_of(rows):
    return NRRL.features(observations(rows), CATALOG)


def planted(n_steps, seed=0, truth=TRUTH):
    features = features_of(random_steps(n_steps, seed=seed))
    return dataclasses.replace(features, step_time_us=features.blocks["step"].values @ truth)


def test_it_has_the_designs_twelve_features():
    assert len(features_of([step()]).blocks["step"].names) == 12


def test_features_of_one_step_by_hand():
    row = step(
        model="mistralai/Mixtral-8x7B-v0.1",
        tensor_parallel_size=4,
        prefill_new_tokens=[256],
        prefill_context_tokens=[64],
        decode_context_tokens=[100, 200, 300],
        max_model_len=4096,
    )
    block = features_of([row]).blocks["step"]
    found = dict(zip(block.names, block.values[0], strict=True))
    peak, bandwidth, kv_bytes = 989e6, 3.35e6, 2 * 2 * 128 * 2 * 32
    pair = 4 * 8 * 128 * 32
    assert found["attention_time"] == pytest.approx(pair * (256 * (64 + 128) + 600) / peak)
    assert found["kv_read_time"] == pytest.approx((600 + 64) * kv_bytes / bandwidth)
    assert found["kv_write_time"] == pytest.approx(259 * kv_bytes / bandwidth)
    assert found["prefill_share"] == pytest.approx(1 / 4)
    assert found["longest_sequence_share"] == pytest.approx(320 / 4096)
    assert found["activated_experts_share"] == pytest.approx(1 - 0.75**259)
    assert found["expert_imbalance"] == pytest.approx(np.sqrt(6 / (2 * 259)))


def test_the_communication_share_is_of_the_rooflines_compute_time_not_of_the_step_time():
    row = step(tensor_parallel_size=4)
    roofline = estimator_named("roofline").features(observations([row]), CATALOG).blocks["roofline"]
    for label in (10_000.0, 90_000.0):
        block = features_of([row | {"step_time_us": label}]).blocks["step"]
        share = block.values[0, block.names.index("communication_over_compute")]
        assert share == pytest.approx(2 * 32 * 10.0 / roofline.values[0, 0])


def test_planted_coefficients_are_recovered_and_predict_unseen_steps():
    learned = NRRL.fit(planted(600), QUICK)
    unseen = planted(200, seed=9)
    assert NRRL.predict(learned, unseen) == pytest.approx(unseen.step_time_us, rel=1e-3)
    assert learned.blocks["step"]["weight_read_time"] == pytest.approx(1.3, rel=0.05)
    assert learned.blocks["step"]["longest_sequence_share"] == pytest.approx(5_000.0, rel=0.05)


def test_where_the_sum_turns_negative_the_shortest_step_of_the_fit_is_predicted():
    truth = np.zeros(12)
    truth[[0, 8]] = 9_000.0, -60_000.0
    features = planted(300, truth=truth)
    learned = NRRL.fit(features, QUICK)
    far = features_of([step(decode_context_tokens=[100_000])])
    shortest = features.step_time_us.min()
    assert NRRL.predict(learned, far).tolist() == [shortest]
    assert learned.chosen["floored_share"] < 0.02


def test_the_ridge_is_chosen_by_held_out_jobs():
    config = FitConfig(lambda_beta=(1e-8, 1e3), winsorise_quantile=1.0)
    assert NRRL.fit(planted(300), config).chosen["lambda_beta"] == pytest.approx(1e-8)


def test_relative_errors_count_so_that_long_prefills_do_not_drown_decodes():
    """Labels that no twelve coefficients meet exactly: the error of short steps must not exceed that of long ones."""
    features = planted(400)
    bent = dataclasses.replace(features, step_time_us=features.step_time_us**1.1)
    learned = NRRL.fit(bent, QUICK)
    error = np.abs(NRRL.predict(learned, bent) / bent.step_time_us - 1)
    short = bent.step_time_us < np.quantile(bent.step_time_us, 0.3)
    assert error[short].mean() < 0.1
