import numpy as np
import pytest

from srfa.domain import FAR_RATIO, IN_DOMAIN, descriptors, grade_steps, training_domain
from srfa.observations import from_table
from tests.planted import GPUS, MODELS, planted_observations, planted_table
from tests.steps import observations, step


@pytest.fixture(scope="module")
def domain(shipped):
    return training_domain(planted_observations(steps_per_job=60), shipped)


def familiar(**changes):
    """A step like those of the planted jobs."""
    return step(
        gpu=GPUS[0],
        model=MODELS[1],
        software_version="vllm 0.32.0",
        **{"decode_context_tokens": [1000] * 20, "tensor_parallel_size": 1} | changes,
    )


def graded(domain, shipped, **changes):
    found = grade_steps(observations([{**familiar(), **changes}]), shipped, domain)
    return int(found.grade[0]), found.reason[0]


def test_a_step_like_those_of_the_fit_is_in_domain(domain, shipped):
    assert graded(domain, shipped) == (0, IN_DOMAIN)


@pytest.mark.parametrize(
    ("changes", "grade", "says"),
    [
        ({"tensor_parallel_size": 8}, 1, "TP 8 was not in the fit"),
        ({"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4, "expert_parallel_size": 4}, 1, "EP 4"),
        ({"model": "Qwen/Qwen3-14B"}, 2, "model Qwen/Qwen3-14B was not in the fit"),
        ({"gpu": "h200-sxm-141gb"}, 3, "GPU h200-sxm-141gb was not in the fit"),
        ({"gpu": "l40s-48gb"}, 3, "GPU l40s-48gb"),
        ({"software_version": "vllm 0.14.0"}, 3, "engine vllm 0.14.0 was not in the fit"),
        ({"dtype": "float32"}, 3, "dtype float32 was not in the fit"),
        ({"quantization": "FP8"}, 3, "quantization fp8 was not in the fit"),
        ({"kv_cache_dtype": "fp8_e4m3"}, 3, "KV cache dtype fp8_e4m3 was not in the fit"),
        ({"gpu": "h200-sxm-141gb", "model": "Qwen/Qwen3-14B"}, 4, "model Qwen/Qwen3-14B"),
        ({"model": "Qwen/Qwen3-14B", "tensor_parallel_size": 8}, 2, "TP 8"),
    ],
)
def test_what_was_not_in_the_fit_has_its_grade_and_is_named(changes, grade, says, domain, shipped):
    found, reason = graded(domain, shipped, **changes)
    assert found == grade
    assert says in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": GPUS[0].upper(), "model": MODELS[1].rpartition("/")[2].lower()},
        {"software_version": None},
        {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16"},
        {"dtype": "half"},
    ],
)
def test_another_spelling_or_an_unnamed_engine_is_no_stranger(changes, domain, shipped):
    assert graded(domain, shipped, **changes)[0] == 0


def test_a_fit_that_did_not_record_its_formats_calls_none_unseen(domain, shipped):
    old = domain.model_copy(update={"dtypes": (), "quantizations": (), "kv_cache_dtypes": ()})
    assert graded(old, shipped, dtype="float32", quantization="fp8", kv_cache_dtype="fp8")[0] == 0


def test_a_fit_to_quantized_steps_knows_their_formats(shipped):
    small = {"quantization": "awq", "kv_cache_dtype": "fp8"}
    alone = training_domain(observations([{**familiar(), **small}]), shipped)
    assert (alone.dtypes, alone.quantizations, alone.kv_cache_dtypes) == (("bfloat16",), ("awq",), ("fp8",))
    assert graded(alone, shipped, **small) == (0, IN_DOMAIN)
    assert "quantization none was not in the fit; KV cache dtype auto was not in the fit" in graded(alone, shipped)[1]


def test_a_batch_beyond_those_of_the_fit_is_grade_1(domain, shipped):
    rows = [familiar(decode_context_tokens=[120_000] * 500)]
    found = grade_steps(observations(rows), shipped, domain)
    assert found.grade.tolist() == [1]
    assert found.reason == ["a batch beyond those of the fit"]
    assert found.leverage_ratio[0] > 1


def test_what_is_farther_than_anything_tried_is_grade_4(domain, shipped):
    near = domain.model_copy(update={"bridged_ratio": 0.0, "leverage_limit": domain.leverage_limit / 1000})
    found = grade_steps(observations([familiar()]), shipped, near)
    assert found.leverage_ratio[0] > FAR_RATIO
    assert found.grade.tolist() == [4]
    assert "farther from the fit" in found.reason[0]
    bridged = near.model_copy(update={"bridged_ratio": 1e9})
    assert grade_steps(observations([familiar()]), shipped, bridged).grade.tolist() == [1]


def test_one_training_step_in_a_hundred_is_beyond_the_limit(domain, shipped):
    found = grade_steps(planted_observations(steps_per_job=60), shipped, domain)
    assert np.mean(found.leverage_ratio > 1) == pytest.approx(0.01, abs=0.002)
    assert set(found.grade.tolist()) == {0, 1}


def test_an_unseen_gpu_of_a_fit_to_one_gpu_is_grade_3(shipped):
    table = planted_table()
    alone = from_table(table.filter([gpu == GPUS[0] for gpu in table["gpu"].to_pylist()]))
    assert graded(training_domain(alone, shipped), shipped, gpu=GPUS[1])[0] == 3


def test_leverage_is_the_mahalanobis_distance_in_other_words(domain, shipped):
    steps = planted_observations(steps_per_job=60)
    names, values = descriptors(steps, shipped)
    assert names == domain.descriptors
    z = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 0.5)
    expected = np.array([row @ np.linalg.inv(np.cov(z.T, bias=True) + 0.1 * np.eye(9)) @ row for row in z[:20]])
    found = grade_steps(steps, shipped, domain).leverage_ratio[:20] * domain.leverage_limit
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_grades_do_not_depend_on_the_order_of_steps(seed, planted, shipped, domain):
    order = np.random.default_rng(seed).permutation(planted.n_steps)
    one, other = grade_steps(planted, shipped, domain), grade_steps(planted.take(order), shipped, domain)
    assert other.grade.tolist() == one.grade[order].tolist()
    assert other.reason == [one.reason[row] for row in order]
