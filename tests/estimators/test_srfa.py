import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import FitError
from srfa.estimators import estimator_named
from srfa.estimators.srfa import StepClock
from srfa.fit.terms import COMPUTE, LINEAR_TERMS, MEMORY
from srfa.operator_kernels import LINEAR, StepTotals
from srfa.operators import KINDS, step_totals
from srfa.roofline import floor_us
from srfa.specs import Microbenchmark
from tests.steps import catalog, observations, random_steps, step

CATALOG = catalog()
SRFA = estimator_named("srfa")
QUICK = FitConfig(huber_delta=(0.1,))
LOOSE = FitConfig(huber_delta=(0.1,), prior_weight=(1e-9,))


def features_of(rows):
    return SRFA.features(observations(rows), CATALOG)


def relabelled(features, labels):
    return dataclasses.replace(features, step_time_us=labels)


def changed(coefficients, block, **values):
    old = coefficients.blocks[block]
    new = tuple(values.get(name, value) for name, value in zip(old.names, old.values, strict=True))
    return coefficients.model_copy(
        update={"blocks": coefficients.blocks | {block: old.model_copy(update={"values": new})}}
    )


@pytest.fixture(scope="module")
def planted():
    """Coefficients that nobody would guess, and steps timed by them."""
    features = features_of(random_steps(800))
    guess = SRFA.fit(features, QUICK)
    law = changed(guess, "memory", gemm=1.3, decode_attention=1.6, experts=1.4)
    law = changed(law, "compute", gemm=1.6, prefill_attention=2.6)
    law = changed(law, "linear", kernel_latency=6000.0, host_step=900.0)
    law = changed(law, "gpu_memory", **{"a100-sxm-80gb": 1.1, "h100-sxm-80gb": 0.9})
    law = changed(law, "gpu_compute", **{"a100-sxm-80gb": 1.0, "h100-sxm-80gb": 1.0})
    return law, relabelled(features, SRFA.predict(law, features))


def test_there_are_at_most_25_parameters_and_each_has_its_feature():
    assert tuple(term.name for term in MEMORY) == tuple(term.name for term in COMPUTE) == KINDS
    assert tuple(term.name for term in LINEAR_TERMS) == tuple(name for name, _ in LINEAR)
    assert len(MEMORY) + len(COMPUTE) + len(LINEAR_TERMS) <= 25


def test_a_planted_law_is_recovered_where_it_is_identified(planted):
    law, features = planted
    found = SRFA.fit(features, LOOSE)
    assert found.converged
    assert SRFA.predict(found, features) == pytest.approx(features.step_time_us, rel=0.01)
    unseen = features_of(random_steps(300, seed=5))
    assert SRFA.predict(found, unseen) == pytest.approx(SRFA.predict(law, unseen), rel=0.02)
    effective = [
        [one.blocks["memory"]["decode_attention"] * deviation for deviation in one.blocks["gpu_memory"].values]
        for one in (found, law)
    ]
    assert effective[0] == pytest.approx(effective[1], rel=0.1)


def test_what_no_step_shows_stays_at_the_prior(planted):
    _, features = planted
    found = SRFA.fit(features, QUICK)
    assert found.blocks["linear"]["offload_traffic"] == pytest.approx(1.2, rel=1e-3)


def test_an_unseen_gpu_is_predicted_without_a_deviation(planted):
    law, _ = planted
    row = step(gpu="h200-sxm-141gb")
    h200 = features_of([row])
    without = changed(law, "gpu_memory", **{"a100-sxm-80gb": 3.0, "h100-sxm-80gb": 3.0})
    assert SRFA.predict(law, h200) == SRFA.predict(without, h200)


def test_a_microbenchmark_takes_the_place_of_the_unknown_deviation(planted):
    law, _ = planted
    gpu = CATALOG.resolve_gpu("h200-sxm-141gb")
    times = []
    for share in (0.9, 0.6):
        measured = Microbenchmark(
            schema_version=1,
            kind="cuda",
            dtype="bfloat16",
            gpu="h200-sxm-141gb",
            source="made up",
            weight_stream_tbps=share * 4.8,
            gemm_tflops=700.0,
        )
        shelf = CATALOG.with_gpu(gpu.model_copy(update={"microbenchmark": measured}))
        times.append(SRFA.predict(law, SRFA.features(observations([step(gpu="h200-sxm-141gb")]), shelf))[0])
    assert 1.2 < times[1] / times[0] < 1.5


def calibrated(**figures):
    gpu = CATALOG.resolve_gpu("h200-sxm-141gb")
    measured = Microbenchmark(
        schema_version=1, kind="cuda", dtype="bfloat16", gpu="h200-sxm-141gb", source="made up", **figures
    )
    return CATALOG.with_gpu(gpu.model_copy(update={"microbenchmark": measured}))


def test_a_microbenchmark_of_16_bit_products_says_the_same_of_every_configuration(planted):
    law, _ = planted
    shelf = calibrated(gemm_tflops=750.0)
    job = {
        "gpu": "h200-sxm-141gb",
        "prefill_new_tokens": [8192],
        "prefill_context_tokens": [0],
        "decode_context_tokens": [],
    }
    plain, fp8 = step(**job), step(**job, quantization="fp8")
    alone = [SRFA.predict(law, SRFA.features(observations([row]), shelf))[0] for row in (plain, fp8)]
    together = SRFA.predict(law, SRFA.features(observations([fp8, plain]), shelf))
    assert together.tolist() == alone[::-1]
    assert alone[1] < 0.75 * alone[0]


def test_a_gpu_spelled_in_capitals_is_the_same_gpu(planted):
    law, _ = planted
    times = [SRFA.predict(law, features_of([step(gpu=name)]))[0] for name in ("a100-sxm-80gb", "A100-SXM-80GB")]
    assert times[0] == times[1]


def test_no_prediction_undercuts_the_speed_of_light(planted):
    _, features = planted
    fast = SRFA.fit(relabelled(features, features.step_time_us / 10.0), LOOSE)
    unseen = observations(random_steps(400, seed=8))
    predicted = SRFA.predict(fast, SRFA.features(unseen, CATALOG))
    assert (predicted >= 0.999 * floor_us(unseen, CATALOG)).all()


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"])
def test_more_work_never_takes_less_time(planted, model):
    law, _ = planted
    job = {"model": model, "tensor_parallel_size": 4}
    prefills = [step(**job, prefill_new_tokens=[n], prefill_context_tokens=[64]) for n in range(1, 700)]
    contexts = [step(**job, decode_context_tokens=[n]) for n in range(1, 20_000, 37)]
    batches = [step(**job, decode_context_tokens=[512] * n) for n in range(1, 400)]
    for rows in (prefills, contexts, batches):
        assert (np.diff(SRFA.predict(law, features_of(rows))) >= 0).all()


def test_a_single_step_is_predicted_as_in_a_table_bit_for_bit(planted):
    law, _ = planted
    seen = observations(random_steps(60, seed=3))
    predicted = SRFA.predict(law, SRFA.features(seen, CATALOG))
    clocks = [StepClock(law, one, CATALOG) for one in seen.configurations]
    totals = step_totals(seen)
    singles = [clocks[at].step_time_us(StepTotals(*totals[row])) for row, at in enumerate(seen.configuration_index)]
    assert singles == predicted.tolist()


def test_the_order_of_steps_changes_nothing(planted):
    _, features = planted
    shuffled = features.take(np.random.default_rng(0).permutation(features.n_steps))
    one, other = SRFA.fit(features, QUICK), SRFA.fit(shuffled, QUICK)
    for block in ("memory", "compute"):
        assert one.blocks[block].values == pytest.approx(other.blocks[block].values, rel=0.02)


def test_a_few_steps_of_another_gpu_teach_it_and_ten_do_no_harm(planted):
    law, _ = planted
    h200 = changed(law, "memory", gemm=1.6)
    pool = features_of(random_steps(400, seed=4, gpu="h200-sxm-141gb"))
    pool = relabelled(pool, SRFA.predict(h200, pool))
    test = pool.take(np.arange(200, 400))

    def error(coefficients):
        return np.mean(np.abs(SRFA.predict(coefficients, test) / test.step_time_us - 1))

    few = {count: error(SRFA.fit(pool.take(np.arange(count)), QUICK, prior=law)) for count in (10, 50)}
    assert few[10] < error(law)
    assert few[50] < 0.5 * error(law)


def test_a_refit_forgets_no_gpu_of_its_source(planted):
    law, _ = planted
    pool = features_of(random_steps(40, seed=4, gpu="h200-sxm-141gb"))
    refitted = SRFA.fit(pool, QUICK, prior=law)
    assert set(refitted.blocks["gpu_memory"].names) == {"a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb"}
    assert refitted.blocks["gpu_memory"]["a100-sxm-80gb"] == pytest.approx(law.blocks["gpu_memory"]["a100-sxm-80gb"])


def test_adaptive_thresholds_alone_leave_the_own_one(planted):
    _, features = planted
    config = FitConfig(huber_delta=(), huber_delta_iqr=(1.5,))
    assert SRFA.fit(features, config).chosen["huber_delta"] == 0.1


def test_the_search_takes_the_setting_that_transfers(planted):
    _, features = planted
    noisy = relabelled(features, features.step_time_us * np.random.default_rng(0).lognormal(0, 0.1, features.n_steps))
    config = FitConfig(huber_delta=(0.1,), prior_weight=(1e-4, 1e4))
    assert SRFA.fit(noisy, config).chosen["prior_weight"] == 1e-4


def test_too_few_steps_are_refused_and_a_prior_needs_fewer(planted):
    law, features = planted
    few = features.take(np.arange(12))
    with pytest.raises(FitError, match="12 steps are left to fit"):
        SRFA.fit(few, QUICK)
    assert SRFA.fit(few, QUICK, prior=law).converged
