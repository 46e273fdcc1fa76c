import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig, read_coefficients, write_coefficients
from srfa.errors import CoefficientsError, FitError
from srfa.estimators import estimator_named
from srfa.features import FeatureMatrix
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
SEED = estimator_named("srfa-seed")
QUICK = FitConfig(lambda_gamma=(1e-7,), lambda_beta=(1e-7,), huber_delta=(0.1,), winsorise_quantile=1.0)


def features_of(rows) -> FeatureMatrix:
    return SEED.features(observations(rows), CATALOG)


def relabelled(features: FeatureMatrix, labels) -> FeatureMatrix:
    return dataclasses.replace(features, step_time_us=labels)


def test_the_alignment_table_has_its_features_in_order():
    blocks = features_of(random_steps(4)).blocks
    assert blocks["fixed"].names == ("intercept", "tp_communication", "ep_communication", "base_overhead")
    assert blocks["compute"].names == (
        "intercept", "prefill_time", "decode_time", "kv_read_time", "log_batch", "log_longest_sequence", "mixed_batch",
    )  # fmt: skip


def test_features_of_one_step_by_hand():
    row = step(
        prefill_new_tokens=[10], prefill_context_tokens=[90], decode_context_tokens=[50, 60, 70], tensor_parallel_size=1
    )
    block = features_of([row]).blocks["compute"]
    compute = dict(zip(block.names, block.values[0], strict=True))
    assert compute["log_batch"] == pytest.approx(np.log(5))
    assert compute["log_longest_sequence"] == pytest.approx(np.log(101))
    assert compute["mixed_batch"] == pytest.approx(1 / 4 * 3 / 4)
    facts = CATALOG.resolve_gpu("h100-sxm-80gb")
    kv_bytes = 180 * 2 * 8 * 128 * 2 * 32
    rate = facts.datasheet.memory_bandwidth_tbps * 1e6 * facts.calibration.bandwidth_efficiency
    assert compute["kv_read_time"] == pytest.approx(kv_bytes / rate)


def test_communication_costs_nothing_on_one_gpu_and_moe_overhead_nothing_in_a_dense_model():
    blocks = features_of([step()]).blocks
    assert blocks["fixed"].values[0, 1:3].tolist() == [0.0, 0.0]
    assert blocks["moe"].values[0, 0] == 0.0


def planted_labels(features: FeatureMatrix):
    """Step times made by the formula itself, written out: overheads plus softplus of compute."""
    linear = features.blocks["fixed"].values @ [500.0, 0.5, 0.0, 1.0] + 2.0 * features.blocks["moe"].values[:, 0]
    compute = features.blocks["compute"].values @ [1_000.0, 1.3, 0.8, 1.1, 300.0, 100.0, 2_000.0]
    return linear + 5_000.0 * np.logaddexp(0.0, compute / 5_000.0)


def test_planted_coefficients_predict_unseen_steps():
    features = features_of(random_steps(600))
    planted = relabelled(features, planted_labels(features))
    learned = SEED.fit(planted.take(np.arange(400)), QUICK)
    unseen = planted.take(np.arange(400, 600))
    error = np.abs(SEED.predict(learned, unseen) / unseen.step_time_us - 1)
    assert np.mean(error) < 0.01
    assert learned.converged
    assert learned.blocks["moe"].values[0] == pytest.approx(2.0, rel=0.2)


def test_without_moe_data_the_imbalance_stays_neutral():
    features = features_of(random_steps(60, model="meta-llama/Llama-3.1-8B"))
    learned = SEED.fit(features, QUICK)
    assert learned.blocks["moe"].values == (1.0,)
    assert learned.blocks["moe"].at_bound == (True,)


def test_overheads_are_never_negative_and_predictions_always_positive():
    features = features_of(random_steps(300, seed=5))
    compute = features.blocks["compute"].values
    learned = SEED.fit(relabelled(features, compute @ [0.0, 1.0, 0.0, 0.0, 400.0, 0.0, 0.0]), QUICK)
    assert min(learned.blocks["fixed"].values) >= 0
    assert (SEED.predict(learned, features) > 0).all()


def test_permuting_steps_changes_nothing():
    features = features_of(random_steps(200))
    order = np.random.default_rng(0).permutation(200)
    one, other = SEED.fit(features, QUICK), SEED.fit(features.take(order), QUICK)
    assert SEED.predict(one, features) == pytest.approx(SEED.predict(other, features), rel=1e-3)


def test_outliers_are_cut_to_the_quantile_of_their_own_job():
    dense = {"model": "meta-llama/Llama-3.1-8B", "step_time_us": 10_000.0}
    features = features_of(random_steps(400, **dense))
    labels = features.step_time_us.copy()
    labels[0] = 1e9
    learned = SEED.fit(relabelled(features, labels), QUICK.model_copy(update={"winsorise_quantile": 0.9}))
    assert SEED.predict(learned, features) == pytest.approx(np.full(400, 10_000.0), rel=0.05)


def test_warm_up_steps_of_every_job_are_dropped():
    features = features_of(random_steps(100))
    with pytest.raises(FitError, match="0 steps are left to fit"):
        SEED.fit(features, FitConfig(warmup_steps=10))


def test_coefficients_survive_the_file_bit_for_bit(tmp_path):
    features = features_of(random_steps(100))
    learned = SEED.fit(features, QUICK)
    write_coefficients(learned, tmp_path / "c.json")
    again = read_coefficients(tmp_path / "c.json")
    assert SEED.predict(again, features).tolist() == SEED.predict(learned, features).tolist()


def test_an_unknown_field_in_the_file_is_refused_by_name(tmp_path):
    learned = SEED.fit(features_of(random_steps(100)), QUICK)
    write_coefficients(learned, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text().replace('"converged"', '"convergd": true, "converged"')
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CoefficientsError, match="convergd"):
        read_coefficients(tmp_path / "c.json")


def test_coefficients_of_another_feature_set_are_refused():
    features = features_of(random_steps(100))
    learned = SEED.fit(features, QUICK)
    fewer = {name: block for name, block in learned.blocks.items() if name != "compute"}
    with pytest.raises(CoefficientsError, match="block 'compute' has no features"):
        SEED.predict(learned.model_copy(update={"blocks": fewer}), features)


def test_the_threshold_can_follow_the_noise_of_the_data():
    features = features_of(random_steps(300))
    rng, planted = np.random.default_rng(0), planted_labels(features)
    config = QUICK.model_copy(update={"huber_delta": (), "huber_delta_iqr": (1.5,)})
    calm, noisy = (
        SEED.fit(relabelled(features, planted * rng.normal(1, noise, 300)), config).chosen["huber_delta"]
        for noise in (0.02, 0.15)
    )
    assert calm < 0.5 * noisy
    assert 0.2 < noisy < 0.5


def with_ridge(ridge):
    return QUICK.model_copy(update={"lambda_gamma": (ridge,), "lambda_beta": (ridge,)})


def flat(coefficients):
    return np.concatenate([block.values for block in coefficients.blocks.values()])


def on_other_hardware(features):
    """The planted law, a third slower."""
    return relabelled(features, 1.3 * planted_labels(features))


@pytest.fixture(scope="module")
def source():
    """A fit to the planted law, on steps of their own."""
    features = features_of(random_steps(400, seed=7))
    return SEED.fit(relabelled(features, planted_labels(features)), QUICK)


def test_with_a_very_strong_ridge_the_fit_is_its_prior(source):
    target = on_other_hardware(features_of(random_steps(60, seed=1)))
    refitted = SEED.fit(target, with_ridge(1e6), prior=source)
    assert flat(refitted) == pytest.approx(flat(source), rel=1e-3, abs=1e-2)
    assert SEED.predict(refitted, target) == pytest.approx(SEED.predict(source, target), rel=1e-3)
    assert refitted.converged


def test_next_to_no_ridge_makes_the_prior_tell_nothing():
    target = on_other_hardware(features_of(random_steps(200, seed=1)))
    plain = SEED.fit(target, with_ridge(1e-7))
    blocks = {
        name: block.model_copy(update={"values": tuple(1.5 * value for value in block.values)})
        for name, block in plain.blocks.items()
    }
    refitted = SEED.fit(target, with_ridge(1e-7), prior=plain.model_copy(update={"blocks": blocks}))
    assert SEED.predict(refitted, target) == pytest.approx(SEED.predict(plain, target), rel=1e-3)


def test_no_prior_is_the_plain_fit():
    target = features_of(random_steps(60, seed=1))
    assert SEED.fit(target, QUICK, prior=None) == SEED.fit(target, QUICK)


def test_a_few_steps_with_a_prior_predict_better_than_the_prior_and_than_the_steps_alone(source):
    few = on_other_hardware(features_of(random_steps(25, seed=2)))
    unseen = on_other_hardware(features_of(random_steps(300, seed=3)))
    weak = with_ridge(1e-3)

    def error(coefficients):
        return np.mean(np.abs(SEED.predict(coefficients, unseen) / unseen.step_time_us - 1))

    refitted = error(SEED.fit(few, weak, prior=source))
    assert refitted < 0.6 * error(source)
    assert refitted < 0.9 * error(SEED.fit(few, weak))


def test_what_the_steps_do_not_tell_stays_as_in_the_prior(source):
    dense = on_other_hardware(
        features_of(random_steps(40, model="meta-llama/Llama-3.1-8B", tensor_parallel_size=1, seed=4))
    )
    refitted = SEED.fit(dense, with_ridge(1e-3), prior=source)
    assert refitted.blocks["moe"].values == pytest.approx(source.blocks["moe"].values)
    assert refitted.blocks["fixed"]["tp_communication"] == pytest.approx(
        source.blocks["fixed"]["tp_communication"], rel=1e-2, abs=1e-3
    )


def test_a_prior_carries_ten_steps_and_not_nine(source):
    assert SEED.fit(on_other_hardware(features_of(random_steps(10))), QUICK, prior=source).converged
    with pytest.raises(FitError, match="at least 10 are needed"):
        SEED.fit(features_of(random_steps(9)), QUICK, prior=source)
    with pytest.raises(FitError, match="at least 20 are needed"):
        SEED.fit(features_of(random_steps(19)), QUICK)


def test_a_prior_of_another_feature_set_is_refused(source):
    fewer = {name: block for name, block in source.blocks.items() if name != "compute"}
    with pytest.raises(CoefficientsError, match="block 'compute' has no features"):
        SEED.fit(features_of(random_steps(40)), QUICK, prior=source.model_copy(update={"blocks": fewer}))
