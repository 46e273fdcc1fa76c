"""Loads whose requests are all with the engine before its first step: what small real engines make of them is recorded.

``python -m tests.vllm.recorded_schedules FOLDER`` makes the recordings that ``tests/data/schedule_*.jsonl.gz`` are.
"""

import gzip
import os
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 32
FEW_BLOCKS = 18


@dataclass(frozen=True)
class Case:
    """One engine and its requests, each a prompt and how many tokens it makes."""

    model: str
    requests: list[tuple[list[int], int]]
    engine: dict[str, object] = field(default_factory=dict)
    priorities: list[int] | None = None
    rounds: int = 1


def tokens(count, seed):
    generator = random.Random(seed)
    return [generator.randrange(3, 2000) for _ in range(count)]


def mixed(count, longest, most, seed):
    """Prompts of 1 to ``longest`` tokens that share nothing, 1 to ``most`` tokens out."""
    generator = random.Random(seed)
    return [(tokens(generator.randint(1, longest), f"{seed}-{i}"), generator.randint(1, most)) for i in range(count)]


def sharing(count, seed):
    """Prompts that start alike, some equal to an earlier one, some exactly a number of blocks long."""
    generator = random.Random(seed)
    starts = [tokens(BLOCK * n, f"start-{n}") for n in (1, 3, 4)]
    found = []
    for index in range(count):
        tail = tokens(generator.choice([0, 5, BLOCK, 50]), f"tail-{seed}-{index}")
        again = found and generator.random() < 0.3
        prompt = generator.choice(found)[0] if again else generator.choice(starts) + tail
        found.append((prompt, generator.randint(1, 40)))
    return found


CASES = {
    "dense_chunks": Case("dense", mixed(16, 300, 24, 1)),
    "moe_chunks": Case("moe", mixed(16, 300, 24, 2), {"max_num_batched_tokens": 48}),
    "dense_prefix": Case("dense", sharing(24, 3), {"num_gpu_blocks_override": FEW_BLOCKS, "max_num_seqs": 6}),
    "moe_turns": Case("moe", mixed(6, 90, 60, 4), {"max_num_seqs": 2, "max_num_batched_tokens": 96}, rounds=3),
    "dense_preempt": Case("dense", mixed(12, 100, 90, 5), {"num_gpu_blocks_override": FEW_BLOCKS}),
    "moe_preempt": Case("moe", sharing(16, 6), {"num_gpu_blocks_override": FEW_BLOCKS, "max_num_batched_tokens": 64}),
    "dense_uncached": Case(
        "dense", mixed(12, 100, 70, 7), {"num_gpu_blocks_override": 20, "enable_prefix_caching": False}
    ),
    "dense_seqs": Case("dense", mixed(12, 150, 20, 8), {"max_num_seqs": 3}),
    "dense_long": Case("dense", mixed(14, 300, 20, 9), {"long_prefill_token_threshold": 40, "max_num_seqs": 8}),
    "dense_priority": Case(
        "dense",
        mixed(14, 120, 60, 10),
        {"scheduling_policy": "priority", "num_gpu_blocks_override": FEW_BLOCKS, "max_num_seqs": 8},
        priorities=[3, 1, 2, 0, 2, 1, 3, 0, 1, 2, 0, 3, 1, 0],
    ),
    "dense_whole": Case(
        "dense", mixed(12, 300, 20, 11), {"enable_chunked_prefill": False, "max_num_batched_tokens": 512}
    ),
    "dense_headroom": Case(
        "dense",
        mixed(14, 200, 50, 12),
        {"watermark": 0.15, "scheduler_reserve_full_isl": False, "num_gpu_blocks_override": FEW_BLOCKS},
    ),
}


def record(case, folder, trace):
    """Run a case on a real engine that leaves its trace at ``trace``."""
    engine, requests = case.engine, case.requests
    for _ in range(case.rounds - 1):
        os.environ.pop("SRFA_TRACE_PATH", None)
        requests = case.requests + next_turn(requests, answers(serve(folder, case, engine, requests)))
    os.environ["SRFA_TRACE_PATH"] = str(trace)
    serve(folder, case, engine, requests)


def next_turn(requests, outputs):
    """Each conversation so far, its answer and a few words more."""
    return [
        (prompt + answer + tokens(12, f"turn-{len(prompt)}-{index}"), most)
        for index, ((prompt, most), answer) in enumerate(zip(requests, outputs, strict=True))
    ]


def answers(finished):
    return [list(output.outputs[0].token_ids) for output in finished]


def serve(folder, case, engine_arguments, requests):
    """Add every request, then step until none is left; returns the outputs in the order of the requests."""
    from vllm import SamplingParams

    from tests.vllm.engine_driver import build, stop

    engine = build(folder / case.model, **engine_arguments)
    for index, (prompt, most) in enumerate(requests):
        engine.llm_engine.add_request(
            f"r{index}",
            {"prompt_token_ids": prompt},
            SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=most),
            priority=case.priorities[index] if case.priorities else 0,
        )
    finished = {}
    while engine.llm_engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.llm_engine.step() if output.finished}
    stop(engine)
    return [finished[f"r{index}"] for index in range(len(requests))]


def record_all(folder, names=CASES):
    """Record cases into ``folder/schedule_NAME.jsonl``, engine core in this process: adding is done before stepping."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name in names:
        record(CASES[name], folder, folder / f"schedule_{name}.jsonl")
        sys.stderr.write(f"recorded {name}\n")


def main():
    """Make the recordings anew, compressed."""
    from tests.vllm.conftest import run_scenarios

    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = run_scenarios(Path(name), ["schedules"])
        for trace in sorted(folder.glob("schedule_*.jsonl")):
            compressed = gzip.compress(trace.read_bytes(), compresslevel=9, mtime=0)
            (target / f"{trace.name}.gz").write_bytes(compressed)


if __name__ == "__main__":
    main()
