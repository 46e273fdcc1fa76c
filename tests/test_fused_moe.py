import numpy as np
import pytest

from srfa.fused_moe import expert_loads, is_tuned
from srfa.roofline import places
from srfa.routing import TOKENS
from tests.steps import catalog, observations, step

CATALOG = catalog()
MIXTRAL = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4}


def place(**changes):
    (only,) = places(observations([step(**MIXTRAL | changes)]), CATALOG)
    return only


def test_a_shape_the_engine_ships_tiles_for_is_tuned_on_that_gpu_alone():
    assert is_tuned(place(gpu="h100-sxm-80gb"))  # E=8, N=3584
    assert not is_tuned(place(gpu="h100-sxm-80gb", expert_parallel_size=4))  # E=2, N=14336
    assert not is_tuned(place(gpu="b200-sxm-180gb"))


def test_the_job_fact_decides_where_it_is_known():
    assert is_tuned(place(gpu="b200-sxm-180gb", moe_kernel="flashinfer-cutlass"))
    assert not is_tuned(place(gpu="h100-sxm-80gb", moe_kernel="triton-default"))


def test_a_dense_model_has_no_experts():
    dense = place(model="meta-llama/Llama-3.1-8B")
    assert not is_tuned(dense)
    assert expert_loads(dense).tolist() == np.zeros((2, len(TOKENS))).tolist()


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm-80gb", "l40s-48gb", "b200-sxm-180gb", "cpu-1t"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3", "srfa/tiny-moe"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_more_tokens_never_take_less_time(gpu, model, ranks):
    loads = expert_loads(place(gpu=gpu, model=model, tensor_parallel_size=4, expert_parallel_size=ranks))
    assert np.isfinite(loads).all()
    assert (np.diff(loads, axis=1) >= 0).all()


def test_all_experts_are_read_by_a_large_batch_by_hand():
    """Mixtral on four GPUs: 8 experts of 3 x 4096 x 3584 entries, two bytes each, in 32 layers."""
    one = place(gpu="h100-sxm-80gb")
    weights = 8 * 3 * 4096 * 3584 * 2 * 32 / 3.35e6
    memory = np.exp(expert_loads(one)[0])
    assert memory[np.searchsorted(TOKENS, 64)] == pytest.approx(weights, rel=0.02)
    assert memory[0] == pytest.approx(weights / 4, rel=0.02)


def test_default_tiles_leave_a_wide_tensor_core_waiting():
    """At 2,048 operations a clock and multiprocessor an H100 gives half of its dense rate, an A100 all of it."""
    ratios = {}
    for gpu in ("a100-sxm-80gb", "h100-sxm-80gb"):
        compute = [np.exp(expert_loads(place(gpu=gpu, moe_kernel=kernel))[1, -1]) for kernel in ("triton-default", "x")]
        ratios[gpu] = compute[0] / compute[1]
    assert ratios["a100-sxm-80gb"] == pytest.approx(1.0, rel=0.02)
    assert ratios["h100-sxm-80gb"] == pytest.approx(2.0, rel=0.02)
