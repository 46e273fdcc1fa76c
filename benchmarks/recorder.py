"""What tracing costs a step: ``python -m benchmarks.recorder``. Limit: 1 % of a step with 32 running requests.

A real vLLM engine on CPU (its own engine core and worker process, a dense model of hidden size 512 and 6 layers
with random weights) decodes 32 requests together; the recorder's own ``recorder_time_ns`` is set against the step
time. Also said: how steady the wall clock and the CPU clocks are over these near-identical batches.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srfa.units import NS_PER_US

REQUESTS = 32
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 192
LIMIT_RATIO = 0.01
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}


def record_steps(folder: Path) -> list[dict[str, Any]]:
    """Run the engine and return the records of the steps in which all requests decode together."""
    (folder / "config.json").write_text(json.dumps(MODEL))
    trace = folder / "trace.jsonl"
    os.environ.update(ENVIRONMENT | {"SRFA_TRACE_PATH": str(trace)})
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - reads the environment when it is imported

    engine = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        kv_cache_memory_bytes=256 << 20,
        block_size=32,
        max_model_len=512,
        scheduler_cls="srfa.vllm.scheduler.TracingScheduler",
    )
    prompts = [{"prompt_token_ids": [3 + (i * 7 + j) % 2000 for j in range(PROMPT_TOKENS)]} for i in range(REQUESTS)]
    engine.generate(
        prompts, SamplingParams(ignore_eos=True, max_tokens=OUTPUT_TOKENS, detokenize=False), use_tqdm=False
    )
    engine.llm_engine.engine_core.shutdown()  # else its processes keep this one from ending
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    return [step for step in records if step["record"] == "step" and step["num_new_tokens"] == [1] * REQUESTS]


def step_times_us(steps: Sequence[dict[str, Any]]) -> list[float]:
    """Return the label of each step but the first, in us: the busy cycle up to its output."""
    pairs = itertools.pairwise(steps)
    return [
        (now["t_output_ns"] - max(now["t_schedule_start_ns"], last["t_output_ns"])) / NS_PER_US for last, now in pairs
    ]


def describe(name: str, values_us: Sequence[float]) -> str:
    """Return median, coefficient of variation, and its robust form (1.4826 MAD / median), as one line."""
    median = statistics.median(values_us)
    variation = statistics.pstdev(values_us) / statistics.fmean(values_us)
    robust = 1.4826 * statistics.median(abs(value - median) for value in values_us) / median
    return f"{name:28} median {median:9.0f} us   CV {variation:5.2f}   robust CV {robust:5.2f}"


def main() -> None:
    """Print the recorder's share and the clocks' steadiness."""
    with tempfile.TemporaryDirectory() as folder:
        steps = record_steps(Path(folder))
    measured = steps[1:]
    wall_us = step_times_us(steps)
    recorder_us = [step["recorder_time_ns"] / NS_PER_US for step in measured]
    print(f"{len(measured)} steps of {REQUESTS} decoding requests")
    print(describe("step, wall", wall_us))
    print(describe("step, busiest worker's CPU", [step["step_cpu_time_ns"] / NS_PER_US for step in measured]))
    print(describe("engine core's thread CPU", [step["engine_cpu_time_ns"] / NS_PER_US for step in measured]))
    print(describe("recorder", recorder_us))
    ratio = statistics.median(recorder_us) / statistics.median(wall_us)
    verdict = "ok" if ratio <= LIMIT_RATIO else "TOO SLOW"
    print(f"recorder / step: {ratio:.2%} of the medians, {sum(recorder_us) / sum(wall_us):.2%} of the sums: {verdict}")


if __name__ == "__main__":
    main()
