import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.estimators import estimator_named
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
JAMS = estimator_named("jams")
QUICK = FitConfig(lambda_gamma=(1e-9,), lambda_beta=(1e-9,), huber_delta=(0.1,), winsorise_quantile=1.0)
FIXED = np.array([1_000.0, 2.0, 3.0, 0.5, 0.0])
COMPUTE = np.array([0.0, 1.4, 0.9, 1.2, 40.0, 300.0, 9_000.0, 0.0])


def features_of(rows):
    return JAMS.features(observations(rows), CATALOG)


def column(features, name):
    block = features.blocks["compute"]
    return block.values[:, block.names.index(name)]


def planted(n_steps, seed=0):
    features = features_of(random_steps(n_steps, seed=seed))
    label = features.blocks["fixed"].values @ FIXED + features.blocks["compute"].values @ COMPUTE
    return dataclasses.replace(features, step_time_us=label)


def test_features_of_one_step_by_hand():
    row = step(
        prefill_new_tokens=[100],
        prefill_context_tokens=[0],
        decode_context_tokens=[50] * 3,
        max_num_batched_tokens=1000,
        kv_usage_ratio=0.95,
    )
    block = features_of([row]).blocks["compute"]
    found = dict(zip(block.names, block.values[0], strict=True))
    assert found["batch"] == 4
    assert found["mixed_batch"] == pytest.approx(100 * 3 / 1e6)
    assert found["batch_under_pressure"] == pytest.approx(4 * 0.05)
    assert found["log_longest_sequence"] == pytest.approx(np.log(101))


def test_the_moe_overhead_comes_from_the_architecture():
    row = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4, "decode_context_tokens": [9] * 10}
    block = features_of([step(**row, expert_parallel_size=ranks) for ranks in (1, 4)]).blocks["fixed"]
    routed = block.values[:, block.names.index("moe_router_and_dispatch")]
    router = 10 * 2 * 4096 * 8 * 32 / 989e6
    assert routed == pytest.approx([router, router + 32 * 50.0 * 3])


def test_planted_coefficients_predict_unseen_steps():
    learned = JAMS.fit(planted(800), QUICK)
    unseen = planted(200, seed=9)
    assert learned.converged
    assert JAMS.predict(learned, unseen) == pytest.approx(unseen.step_time_us, rel=0.01)
    assert learned.blocks["compute"]["prefill_time"] == pytest.approx(1.4, rel=0.05)
    assert learned.blocks["compute"]["mixed_batch"] == pytest.approx(9_000.0, rel=0.2)


def test_outliers_do_not_move_the_fit():
    features = planted(800)
    labels = features.step_time_us.copy()
    labels[::40] *= 30
    learned = JAMS.fit(dataclasses.replace(features, step_time_us=labels), QUICK)
    clean = np.arange(800) % 40 != 0
    error = np.abs(JAMS.predict(learned, features) / features.step_time_us - 1)[clean]
    assert error.mean() < 0.03


def test_overheads_and_the_base_keep_their_bounds_and_interactions_may_be_negative():
    features = planted(400)
    saved = 60.0 * column(features, "batch")
    learned = JAMS.fit(dataclasses.replace(features, step_time_us=features.step_time_us - saved), QUICK)
    assert min(learned.blocks["fixed"].values) >= 0
    assert learned.blocks["compute"]["intercept"] >= 0
    assert min(learned.blocks["compute"].values) < 0


def test_where_the_sum_turns_negative_the_shortest_step_of_the_fit_is_predicted():
    features = planted(200)
    learned = JAMS.fit(features, QUICK)
    negative = learned.blocks["compute"].model_copy(update={"values": (0.0, *[-10.0] * 7)})
    predicted = JAMS.predict(learned.model_copy(update={"blocks": {**learned.blocks, "compute": negative}}), features)
    assert predicted.min() == features.step_time_us.min()


def test_settings_are_chosen_by_held_out_jobs_the_adaptive_threshold_among_them():
    config = FitConfig(
        lambda_gamma=(1e-8, 1e3),
        lambda_beta=(1e-8, 1e3),
        huber_delta=(),
        huber_delta_iqr=(1.5,),
        winsorise_quantile=1.0,
    )
    chosen = JAMS.fit(planted(300), config).chosen
    assert (chosen["lambda_gamma"], chosen["lambda_beta"]) == (1e-8, 1e-8)
    assert 0 < chosen["huber_delta"] < 0.05
