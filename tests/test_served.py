import pytest

from srfa.errors import ObservationsError
from srfa.roofline import places
from tests.steps import catalog, observations, step

CATALOG = catalog()
MIXTRAL = {"model": "mistralai/Mixtral-8x7B-v0.1", "tensor_parallel_size": 4}


def placed(**changes):
    return places(observations([step(**changes)]), CATALOG)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "bf16x"}, "dtype='bf16x' should be one of auto, float32"),
        ({"quantization": "fp8xyz"}, "quantization='fp8xyz' should be a method of vLLM"),
        ({"quantization": "four-bits"}, "leave it null"),
        ({"kv_cache_dtype": "blah"}, "kv_cache_dtype='blah' should be one of auto"),
        ({"expert_parallel_size": 5}, "expert_parallel_size=5 needs experts, meta-llama/Llama-3.1-8B is dense; use 1"),
        ({**MIXTRAL, "expert_parallel_size": 16}, "expert_parallel_size=16 leaves ranks without experts"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size=3 does not divide num_attention_heads=32"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_by_place_and_value(changes, says):
    with pytest.raises(ObservationsError, match=says) as refused:
        placed(**changes)
    assert "on h100-sxm-80gb: " in str(refused.value)


def test_every_fault_of_a_configuration_is_named_at_once():
    with pytest.raises(ObservationsError) as refused:
        placed(dtype="bf16x", quantization="fp8xyz", tensor_parallel_size=3)
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"quantization": name}
            for name in ("FP8", "gptq_marlin_24", "awq", "mxfp4", "nvfp4", "modelopt_fp4", "GGUF")
        ),
        *({"quantization": name} for name in ("compressed-tensors", "bitsandbytes", "experts_int8", "ptpc_fp8", None)),
        *({"dtype": name} for name in ("auto", "half", "float32", None)),
        *({"kv_cache_dtype": name} for name in ("auto", "fp8", "fp8_e4m3", "nvfp4", "bfloat16", None)),
        {"tensor_parallel_size": 16},
        {**MIXTRAL, "expert_parallel_size": 4},
    ],
)
def test_what_vllm_serves_is_taken(changes):
    assert len(placed(**changes)) == 1
