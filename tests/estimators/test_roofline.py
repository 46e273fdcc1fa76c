import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import UsageError
from srfa.estimators import estimator_named
from srfa.roofline import floor_us
from tests.steps import catalog, observations, random_steps, step

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


def times_of(*rows):
    block = estimator_named("roofline").features(observations(rows), CATALOG).blocks["roofline"]
    return dict(zip(block.names, block.values.T, strict=True))


def test_a_decode_step_is_bound_by_its_weights_by_hand():
    """Llama 3.1 8B without its embedding table, two bytes a parameter, and a KV cache of 100 tokens."""
    times = times_of(step())
    moved = 2 * (8.03e9 - 128256 * 4096) + 100 * 2 * 8 * 128 * 2 * 32
    assert times["memory_time"][0] == pytest.approx(moved / (0.72 * 3.35e6), rel=0.002)
    assert times["compute_time"][0] < times["memory_time"][0]
    assert times["overhead"][0] == 505.0


def test_a_long_prefill_is_bound_by_its_operations():
    times = times_of(step(prefill_new_tokens=[8192], prefill_context_tokens=[0], decode_context_tokens=[]))
    assert times["compute_time"][0] > 3 * times["memory_time"][0]


def test_a_moe_step_reads_the_experts_it_activates():
    """One token reads 2 of Mixtral's 8 experts, a large batch all of them."""
    mixtral = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4}
    times = times_of(*(step(**mixtral, decode_context_tokens=[1] * count) for count in (1, 512)))
    experts = 6 * 3 * 4096 * 14336 / 4 * 32 * 2 / (0.72 * 3.35e6)
    assert times["memory_time"][1] - times["memory_time"][0] == pytest.approx(experts, rel=0.01)


def test_overheads_are_two_exchanges_a_layer():
    rows = [
        {"expert_parallel_size": 1},
        {"tensor_parallel_size": 4},
        {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4, "expert_parallel_size": 4},
    ]
    assert times_of(*(step(**row) for row in rows))["overhead"].tolist() == [505.0, 505 + 640, 505 + 640 + 3200]


def test_a_prior_teaches_it_nothing(planted, shipped):
    roofline = estimator_named("roofline")
    features = roofline.features(planted, shipped)
    plain = roofline.fit(features, FitConfig())
    assert roofline.fit(features, FitConfig(), prior=plain) == plain
