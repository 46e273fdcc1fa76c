"""Random loads on random servers: the simulator against vLLM's own schedulers, step by step.

``python -m tests.vllm.differential MODEL_FOLDER FIRST COUNT`` prints a JSON line for every case that differs, and one
that says what was covered.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np

from srfa.operator_kernels import StepTotals
from srfa.simulate.clock import linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.load import RequestLoad
from srfa.simulate.served import Served
from srfa.simulate.server import Server
from tests.schedules import named_blocks, schedule_of
from tests.vllm.real_schedulers import Played, play

CLOCK = linear_clock(100.0, StepTotals(prefill_tokens=1.5, decode_context=0.01, is_measured=0.0))
EVERY_US = (0.0, 50.0, 200.0, 1000.0)


def random_server(rng: np.random.Generator) -> Server:
    """Return a small server whose blocks run out."""
    block_size, longest = int(rng.choice([4, 8, 16])), int(rng.choice([64, 128, 200]))
    chunked = bool(rng.random() < 0.85)
    return Server(
        max_num_batched_tokens=int(rng.integers(8, 100)) if chunked else longest + int(rng.integers(50)),
        max_num_seqs=int(rng.integers(1, 9)),
        max_model_len=longest,
        block_size=block_size,
        num_gpu_blocks=int(rng.integers(longest // block_size // 3 + 3, longest // block_size * 2 + 4)),
        enable_chunked_prefill=chunked,
        enable_prefix_caching=bool(rng.random() < 0.75),
        long_prefill_token_threshold=int(rng.choice([0, 0, 5, 20])),
        scheduling_policy=str(rng.choice(["fcfs", "priority"])),
        watermark=float(rng.choice([0.0, 0.0, 0.1, 0.3])),
        scheduler_reserve_full_isl=bool(rng.random() < 0.6),
        async_scheduling=bool(rng.random() < 0.5),
    )


def random_load(rng: np.random.Generator, server: Server) -> tuple[RequestLoad, list[list[int]]]:
    """Return a small load, its blocks named, and its tokens, prompt and output."""
    texts: list[list[int]] = []
    prompts, outputs = [], []
    starts = [_tokens(rng, server.block_size * int(n)) for n in rng.integers(1, 5, 3)]
    longest = min(server.max_model_len, (server.num_gpu_blocks - 1) * server.block_size)
    for _ in range(int(rng.integers(2, 15))):
        prompt = _prompt(rng, texts, starts, server.block_size)[: longest - 1]
        output = int(min(rng.integers(1, rng.choice([4, 21, 61])), longest - len(prompt)))
        texts.append(prompt + _tokens(rng, output))
        prompts.append(len(prompt))
        outputs.append(output)
    count = len(texts)
    arrival_us = np.sort(rng.uniform(0.0, 1.0, count)) * count * rng.choice(EVERY_US)
    load = RequestLoad.of(arrival_us, np.array(prompts), np.array(outputs))
    priority = rng.integers(0, 4, count)
    return replace(load, priority=priority, block_hashes=named_by_tokens(texts, server.block_size)), texts


def _tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(3, 2000, count).tolist()


def _prompt(rng: np.random.Generator, texts: list[list[int]], starts: list[list[int]], block_size: int) -> list[int]:
    """Return an earlier request with its answer, a piece of it, its next turn, a shared start, or something new."""
    kind = rng.integers(5)
    tail = _tokens(rng, int(rng.choice([1, 17, block_size, rng.integers(1, 100)])))
    if kind < 3 and texts:
        earlier = texts[rng.integers(len(texts))]
        return (list(earlier), earlier[: int(rng.integers(1, len(earlier) + 1))], earlier + tail)[kind]
    return starts[rng.integers(len(starts))] + tail if kind == 3 else tail


def named_by_tokens(texts: list[list[int]], block_size: int):
    """Return names of full blocks: equal ones have equal tokens after equal tokens."""
    names: dict[tuple[int, ...], int] = {}
    ends = [range(block_size, len(text) + 1, block_size) for text in texts]
    return named_blocks(
        [
            [names.setdefault(tuple(text[:end]), len(names)) for end in each]
            for text, each in zip(texts, ends, strict=True)
        ]
    )


def case(seed: int) -> tuple[Server, RequestLoad, list[list[int]]]:
    """Return the case of a seed."""
    rng = np.random.default_rng(seed)
    server = random_server(rng)
    return server, *random_load(rng, server)


def both(model: str, seed: int) -> tuple[Server, Served, Played]:
    """Return what the simulator makes of a case, and what vLLM does on the simulated step times."""
    server, load, texts = case(seed)
    served = simulate(load, server, CLOCK, record_steps=True)
    times_us = served.steps.step_time_us
    played = play(model, server, load, texts, lambda step: float(times_us[min(step, len(times_us) - 1)]))
    return server, served, played


def assert_equal(served: Served, played: Played) -> None:
    """Compare every step, every request, and when everything happened."""
    played.schedule.assert_equals(schedule_of(served))
    np.testing.assert_array_equal(served.steps.t_start_us, played.starts, "starts of steps")
    np.testing.assert_array_equal(served.steps.t_output_us, played.outputs, "outputs of steps")
    seen = {
        "t_first_scheduled_us": "scheduled",
        "t_first_token_us": "first_token",
        "t_finished_us": "finished",
        "running_at_queue": "running_at_queue",
        "waiting_at_queue": "waiting_at_queue",
        "kv_usage_at_queue": "kv_usage_at_queue",
    }
    for simulated, real in seen.items():
        expected = [getattr(times, real) for times in played.times]
        np.testing.assert_allclose(getattr(served, simulated), expected, rtol=0, atol=1e-12, err_msg=simulated)


def main() -> None:
    """Print the cases that differ, and what all cases covered."""
    model, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    covered: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            server, served, played = both(model, seed)
            assert_equal(served, played)
        except Exception as error:  # every kind of failure is a difference, to be shown with its case
            _say({"seed": seed, "error": f"{type(error).__name__}: {error}", "server": asdict(case(seed)[0])})
            continue
        kind = f"{'asynchronous' if server.async_scheduling else 'synchronous'} {server.scheduling_policy}"
        covered[f"{kind} steps"] += served.n_steps
        covered[f"{kind} preemptions"] += int(served.num_preemptions.sum())
        covered["cached_tokens"] += int(served.cached_tokens.sum())
    _say({"covered": covered})


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
