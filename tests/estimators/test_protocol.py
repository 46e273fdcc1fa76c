"""What holds for every estimator, whichever it is."""

import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig, read_coefficients, write_coefficients
from srfa.errors import CoefficientsError, FitError
from srfa.estimator_names import DEFAULT_ESTIMATOR, ESTIMATOR_NAMES
from srfa.estimators import ESTIMATORS, estimator_named
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
QUICK = FitConfig(lambda_gamma=(1e-4,), lambda_beta=(1e-4,), huber_delta=(0.1,))
LEARNING = sorted(set(ESTIMATORS) - {"roofline"})
TRANSFERRING = sorted(set(ESTIMATORS) - {"blackbox"})
NAMES = sorted(ESTIMATORS)
MOE_COLUMNS = {
    "nrrl": [("step", "activated_experts_share"), ("step", "expert_imbalance")],
    "lacm": [("log_step", "router"), ("log_step", "expert_imbalance"), ("log_step", "ep_communication")],
    "hamm": [("compute", "moe"), ("compute", "moe_log_tokens"), ("fixed", "ep_communication")],
    "jams": [("fixed", "moe_router_and_dispatch"), ("fixed", "moe_imbalance")],
    "srfa-seed": [("moe", "router_and_dispatch"), ("fixed", "ep_communication")],
}


EXPLODING = {
    "srfa": (("memory", "compute"), "gemm"),
    "srfa-seed": (("compute",), "kv_read_time"),
    "jams": (("compute",), "kv_read_time"),
}


def labelled(rows):
    """Observations whose labels follow bytes and tokens, so that there is something to learn."""
    seen = observations(rows)
    roofline = ESTIMATORS["roofline"]
    features = roofline.features(seen, CATALOG)
    label = 1.3 * roofline.predict(roofline.fit(features, QUICK), features) + 900.0
    return seen, label


def fitted(name, rows):
    estimator = estimator_named(name)
    seen, label = labelled(rows)
    features = dataclasses.replace(estimator.features(seen, CATALOG), step_time_us=label)
    return estimator, estimator.fit(features, QUICK), features


def column(features, block, name):
    return features.blocks[block].values[:, features.blocks[block].names.index(name)]


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_read_back_predict_the_same_bit_for_bit(name, tmp_path):
    estimator, coefficients, features = fitted(name, random_steps(120))
    write_coefficients(coefficients, tmp_path / "c.json")
    again = read_coefficients(tmp_path / "c.json")
    assert again.estimator == name
    assert estimator.predict(again, features).tolist() == estimator.predict(coefficients, features).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_unseen_batches_are_predicted_positive_and_finite(name, seed):
    estimator, coefficients, _ = fitted(name, random_steps(120))
    unseen = estimator.features(observations(random_steps(200, seed=100 + seed)), CATALOG)
    predicted = estimator.predict(coefficients, unseen)
    assert np.isfinite(predicted).all()
    assert (predicted > 0).all()


FAR = [
    step(model="deepseek-ai/DeepSeek-V3", tensor_parallel_size=8, expert_parallel_size=8, gpu="b200-sxm-180gb"),
    step(model="srfa/tiny-dense", gpu="cpu-1t", prefill_new_tokens=[8192] * 4, prefill_context_tokens=[0] * 4),
    step(model="meta-llama/Llama-3.1-70B", gpu="l4-24gb", decode_context_tokens=[100_000] * 512),
]


@pytest.mark.parametrize("name", TRANSFERRING)
def test_far_outside_its_data_an_estimator_may_be_wrong_but_stays_positive_and_finite(name):
    estimator, coefficients, _ = fitted(name, random_steps(120))
    predicted = estimator.predict(coefficients, estimator.features(observations(FAR), CATALOG))
    assert np.isfinite(predicted).all()
    assert (predicted > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fitted_comes_back_closer_than_a_constant_would(name):
    estimator, coefficients, features = fitted(name, random_steps(300))
    error = np.abs(estimator.predict(coefficients, features) / features.step_time_us - 1).mean()
    constant = np.abs(np.median(features.step_time_us) / features.step_time_us - 1).mean()
    assert coefficients.converged
    assert error < 0.7 * constant


@pytest.mark.parametrize("name", LEARNING)
def test_too_few_steps_are_refused(name):
    with pytest.raises(FitError, match="at least 20 are needed"):
        fitted(name, random_steps(12))


@pytest.mark.parametrize("name", sorted(set(LEARNING) - {"blackbox"}))
def test_coefficients_without_their_blocks_are_refused_by_name(name):
    estimator, coefficients, features = fitted(name, random_steps(60))
    with pytest.raises(CoefficientsError, match=f"coefficients of {name}"):
        estimator.predict(coefficients.model_copy(update={"blocks": {}}), features)


def without_multiplier(features, blocks, term):
    """The features with the columns of one term 46,800 times too small: a multiplier was forgotten."""
    changed = {}
    for name in blocks:
        block = features.blocks[name]
        times = np.array([1 / 46_800 if one.partition(".")[0] == term else 1.0 for one in block.names])
        changed[name] = dataclasses.replace(block, values=block.values * times)
    return dataclasses.replace(features, blocks=features.blocks | changed)


@pytest.mark.parametrize("name", sorted(EXPLODING))
def test_a_term_that_explodes_fails_the_fit_by_its_name(name):
    blocks, term = EXPLODING[name]
    estimator, _, features = fitted(name, random_steps(300))
    loose = QUICK.model_copy(update={"prior_weight": (1e-9,), "lambda_gamma": (1e-12,), "lambda_beta": (1e-12,)})
    with pytest.raises(FitError, match=rf"{name}: the fit exploded: .*{blocks[0]}\.{term}="):
        estimator.fit(without_multiplier(features, blocks, term), loose)


def test_the_names_that_options_list_are_those_that_are_registered():
    assert tuple(ESTIMATORS) == ESTIMATOR_NAMES
    assert all(estimator.name == name for name, estimator in ESTIMATORS.items())
    assert DEFAULT_ESTIMATOR in ESTIMATORS


@pytest.mark.parametrize("name", NAMES)
def test_features_have_distinct_names_units_and_finite_values(name):
    features = estimator_named(name).features(observations([*random_steps(20), *FAR]), CATALOG)
    for block in features.blocks.values():
        assert len(set(block.names)) == len(block.names)
        assert all(block.units)
        assert np.isfinite(block.values).all()


@pytest.mark.parametrize("name", sorted(MOE_COLUMNS))
def test_a_dense_model_has_no_moe_term_and_a_moe_model_has(name):
    rows = [step(tensor_parallel_size=4), step(model="mistralai/Mixtral-8x7B-v0.1", tensor_parallel_size=4)]
    features = estimator_named(name).features(observations(rows), CATALOG)
    routed = [block_name for block_name in MOE_COLUMNS[name] if block_name[1] != "ep_communication"]
    assert all(column(features, *place)[0] == 0.0 for place in MOE_COLUMNS[name])
    assert all(column(features, *place)[1] > 0.0 for place in routed)


@pytest.mark.parametrize("name", ["lacm", "hamm", "srfa-seed"])
def test_expert_parallelism_costs_one_exchange_a_moe_layer(name):
    row = step(model="mistralai/Mixtral-8x7B-v0.1", tensor_parallel_size=4, expert_parallel_size=4)
    features = estimator_named(name).features(observations([row]), CATALOG)
    (place,) = [place for place in MOE_COLUMNS[name] if place[1] == "ep_communication"]
    assert column(features, *place)[0] == pytest.approx(32 * 50.0)


@pytest.mark.parametrize(("name", "block"), [("lacm", "log_step"), ("hamm", "fixed"), ("jams", "fixed")])
def test_offloaded_weights_cost_their_time_on_pcie(name, block):
    offloads = [(None, None), (2.0, None), (None, 1_000_000_000)]
    rows = [step(cpu_offload_gb=weights, cpu_offload_bytes=moved) for weights, moved in offloads]
    times = column(estimator_named(name).features(observations(rows), CATALOG), block, "cpu_offload")
    assert times == pytest.approx([0.0, 2 * 1024**3 / 64_000, 1e9 / 64_000])
