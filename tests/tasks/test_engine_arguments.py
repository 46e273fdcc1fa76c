import json
import subprocess
import sys

import pytest

from srfa.specs import EngineArgs
from tasks.engine_arguments import mismatches, resolved_arguments, serve_flags

SHOWN = {
    "parallel_config": {"tensor_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False},
    "model_config": {
        "dtype": "torch.bfloat16",
        "quantization": None,
        "max_model_len": 1024,
        "enforce_eager": False,
        "seed": 0,
    },
    "cache_config": {
        "cache_dtype": "auto",
        "block_size": 32,
        "enable_prefix_caching": True,
        "gpu_memory_utilization": 0.92,
        "kv_cache_memory_bytes": None,
        "num_gpu_blocks_override": None,
        "kv_offloading_size": None,
    },
    "scheduler_config": {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": 0,
        "watermark": 0.0,
        "policy": "fcfs",
    },
    "load_config": {"load_format": "auto"},
    "offload_config": {"uva": {"cpu_offload_gb": 0.0}},
}
"""What vLLM 0.32.0 shows of its configuration, cut to what is read."""


def test_what_is_none_is_left_to_the_engine():
    assert "--max-num-seqs" not in serve_flags(EngineArgs())
    assert "--quantization" not in serve_flags(EngineArgs())


def test_booleans_are_flags_with_their_negation():
    flags = serve_flags(EngineArgs(enable_chunked_prefill=False, enable_prefix_caching=True))
    assert "--no-enable-chunked-prefill" in flags
    assert "--enable-prefix-caching" in flags
    assert "True" not in flags
    assert "False" not in flags


EVERYTHING = EngineArgs(
    quantization="fp8",
    max_model_len=1024,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    block_size=32,
    enable_chunked_prefill=True,
    enable_prefix_caching=True,
    long_prefill_token_threshold=64,
    watermark=0.01,
    gpu_memory_utilization=0.9,
    kv_cache_memory_bytes=1 << 26,
    num_gpu_blocks_override=64,
    kv_offloading_size=1.5,
)


def test_every_argument_is_given_once_set():
    flags = set(serve_flags(EVERYTHING))
    for name in EngineArgs.model_fields:
        flag = name.replace("_", "-")
        assert {f"--{flag}", f"--no-{flag}"} & flags, name


LIST_FLAGS = """
import json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
print("FLAGS", json.dumps([option for action in parser._actions for option in action.option_strings]))
"""


@pytest.mark.vllm
def test_the_engine_knows_every_flag():
    listed = subprocess.run([sys.executable, "-c", LIST_FLAGS], capture_output=True, text=True, check=True).stdout
    known = json.loads(next(line for line in listed.splitlines() if line.startswith("FLAGS"))[6:])
    assert {flag for flag in serve_flags(EVERYTHING) if flag.startswith("--")} <= set(known)


def test_the_requested_configuration_matches_itself():
    wanted = EngineArgs(
        max_model_len=1024, max_num_seqs=16, block_size=32, enable_chunked_prefill=True, dtype="bfloat16"
    )
    assert mismatches(wanted, resolved_arguments(SHOWN)) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2),
        ("max_model_len", 512),
        ("max_num_seqs", 8),
        ("max_num_batched_tokens", 256),
        ("block_size", 16),
        ("enable_chunked_prefill", False),
        ("enable_prefix_caching", False),
        ("kv_cache_dtype", "fp8"),
        ("quantization", "fp8"),
        ("long_prefill_token_threshold", 64),
        ("watermark", 0.05),
        ("dtype", "float16"),
        ("cpu_offload_gb", 4.0),
        ("kv_offloading_size", 2.0),
        ("num_gpu_blocks_override", 10),
        ("enforce_eager", True),
        ("seed", 3),
        ("load_format", "dummy"),
        ("scheduling_policy", "priority"),
        ("enable_expert_parallel", True),
    ],
)
def test_a_value_that_was_not_kept_is_named_with_both_sides(name, value):
    found = mismatches(EngineArgs.model_validate({name: value}), resolved_arguments(SHOWN))
    assert [mismatch.argument for mismatch in found] == [name]
    assert repr(value) in str(found[0])
    assert "resolved" in str(found[0])


@pytest.mark.parametrize(("asked", "shown"), [("half", "torch.float16"), ("float", "torch.float32")])
def test_the_short_names_of_dtypes_match_their_long_ones(asked, shown):
    config = SHOWN | {"model_config": {**SHOWN["model_config"], "dtype": shown}}
    assert mismatches(EngineArgs(dtype=asked), resolved_arguments(config)) == ()


def test_what_the_server_does_not_show_is_not_taken_as_verified():
    found = mismatches(EngineArgs(), resolved_arguments({}))
    assert {"tensor_parallel_size", "seed"} <= {mismatch.argument for mismatch in found}
