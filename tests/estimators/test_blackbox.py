import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import FitError, UnknownConfigurationError
from srfa.estimators import estimator_named
from srfa.validate import cross_validate
from tests.planted import planted_observations
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
BLACKBOX = estimator_named("blackbox")
CONFIG = FitConfig(winsorise_quantile=1.0)
H100 = "meta-llama/Llama-3.1-8B on h100-sxm-80gb, tp4 ep1 dp1, bfloat16"


def planted(rows, truth):
    """Labels of three coefficients a GPU."""
    seen = observations(rows)
    features = BLACKBOX.features(seen, CATALOG)
    values = np.array([truth[name] for name in seen.strings("gpu")])
    return dataclasses.replace(features, step_time_us=(features.blocks["step"].values * values).sum(axis=1))


TRUTH = {"h100-sxm-80gb": (4_000.0, 12.0, 90.0), "a100-sxm-80gb": (7_000.0, 30.0, 150.0)}
DENSE = {"model": "meta-llama/Llama-3.1-8B"}


def test_each_configuration_gets_its_own_coefficients_back():
    features = planted(random_steps(200, **DENSE), TRUTH)
    learned = BLACKBOX.fit(features, CONFIG)
    assert learned.blocks[H100].values == pytest.approx(TRUTH["h100-sxm-80gb"], rel=1e-3)
    assert learned.blocks[H100.replace("h100", "a100")].values == pytest.approx(TRUTH["a100-sxm-80gb"], rel=1e-3)
    assert BLACKBOX.predict(learned, features) == pytest.approx(features.step_time_us, rel=1e-3)


def test_outliers_do_not_move_the_coefficients():
    features = planted(random_steps(400, **DENSE), TRUTH)
    labels = features.step_time_us.copy()
    labels[::20] *= 50
    learned = BLACKBOX.fit(dataclasses.replace(features, step_time_us=labels), CONFIG)
    assert learned.blocks[H100].values == pytest.approx(TRUTH["h100-sxm-80gb"], rel=0.05)


def test_a_cost_that_would_be_negative_is_zero_and_on_its_bound():
    features = planted(random_steps(100, **DENSE), dict.fromkeys(TRUTH, (30000.0, -2.0, 50.0)))
    labels = np.maximum(features.step_time_us, 5_000.0)
    block = BLACKBOX.fit(dataclasses.replace(features, step_time_us=labels), CONFIG).blocks[H100]
    assert block["prefill_tokens"] == 0.0
    assert block.at_bound[1]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gpu": "l4-24gb"}, "on l4-24gb, tp4 ep1 dp1, bfloat16"),
        ({"tensor_parallel_size": 2}, "on h100-sxm-80gb, tp2 ep1 dp1, bfloat16"),
        ({"quantization": "fp8"}, "tp4 ep1 dp1, bfloat16, fp8"),
        ({"dtype": "float16"}, "tp4 ep1 dp1, float16"),
    ],
)
def test_a_configuration_without_data_is_refused_by_name(change, name):
    learned = BLACKBOX.fit(planted(random_steps(100, **DENSE), TRUTH), CONFIG)
    other = BLACKBOX.features(observations([step(**{**DENSE, "tensor_parallel_size": 4} | change)]), CATALOG)
    with pytest.raises(UnknownConfigurationError, match=name):
        BLACKBOX.predict(learned, other)


def test_another_spelling_of_a_known_model_is_known():
    learned = BLACKBOX.fit(planted(random_steps(100, **DENSE), TRUTH), CONFIG)
    respelt = observations([step(model="llama-3.1-8b", gpu="H100-SXM-80GB", tensor_parallel_size=4)])
    assert BLACKBOX.predict(learned, BLACKBOX.features(respelt, CATALOG)) == pytest.approx([4_090.0], rel=1e-3)


def test_a_configuration_with_too_few_steps_is_left_out_and_named():
    rows = [*random_steps(60, **DENSE), *random_steps(5, gpu="l4-24gb", **DENSE)]
    learned = BLACKBOX.fit(planted(rows, TRUTH | {"l4-24gb": (1.0, 1.0, 1.0)}), CONFIG)
    assert len(learned.blocks) == 2
    assert "left out with fewer than 10 steps: meta-llama/Llama-3.1-8B on l4-24gb" in learned.message


def test_without_any_configuration_of_enough_steps_the_fit_is_refused():
    rows = [
        row | {"tensor_parallel_size": 2 ** (n % 4), "gpu": "h100-sxm-80gb"}
        for n, row in enumerate(random_steps(24, **DENSE))
    ]
    with pytest.raises(FitError, match="no configuration has 10 steps"):
        BLACKBOX.fit(planted(rows, TRUTH), CONFIG)


def test_held_out_hardware_is_a_failed_fold_that_says_why():
    report = cross_validate(BLACKBOX, planted_observations(), CATALOG, split="leave-one-gpu-out", config=CONFIG)
    assert all("no coefficients for" in fold.failure for fold in report.folds)
    assert all(fold.errors is None for fold in report.folds)


def test_a_step_of_unmeasured_kind_costs_at_least_the_shortest_step():
    """Decode alone was measured: prefill tokens cost nothing, the floor holds."""
    rows = random_steps(60, **DENSE, prefill_new_tokens=[], prefill_context_tokens=[])
    features = planted(rows, dict.fromkeys(TRUTH, (0.0, 0.0, 900.0)))
    learned = BLACKBOX.fit(features, CONFIG)
    prefill = step(
        **DENSE, tensor_parallel_size=4, prefill_new_tokens=[64], prefill_context_tokens=[0], decode_context_tokens=[]
    )
    predicted = BLACKBOX.predict(learned, BLACKBOX.features(observations([prefill]), CATALOG))
    assert predicted.tolist() == [features.step_time_us.min()]
