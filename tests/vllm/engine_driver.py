"""Run small real engines one after the other in this process and leave their traces in a folder.

    python engine_driver.py FOLDER SCENARIO...

One interpreter imports vLLM once and forks every engine core and worker from it: seconds an engine.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from srfa.vllm.recorder import Recorder

BLOCK_SIZE = 32
SCHEDULER = "srfa.vllm.scheduler.TracingScheduler"


def build(model, scheduler=SCHEDULER, **overrides):
    from vllm import LLM

    arguments = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": BLOCK_SIZE,
        "max_model_len": 512,
        "max_num_batched_tokens": 128,
        "max_num_seqs": 32,
        "enable_prefix_caching": True,
        "scheduler_cls": scheduler,
    } | overrides
    return LLM(model=str(model), **arguments)


def generate(engine, prompts, output_tokens, **sampling):
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_tokens, **sampling)
    return engine.generate([{"prompt_token_ids": p} for p in prompts], parameters, use_tqdm=False)


def prompts(count, length, seed=0):
    generator = random.Random(seed)
    return [[generator.randrange(3, 2000) for _ in range(length)] for _ in range(count)]


def mixed_work(engine):
    """Chunked prefill (300 > 128), a prefix hit (the same prompt again), then more decodes than KV blocks hold."""
    long_prompt = prompts(1, 300)
    generate(engine, long_prompt, 12)
    generate(engine, long_prompt, 12)
    generate(engine, prompts(8, 64, seed=1), 96)
    generate(engine, prompts(3, 150, seed=2), 20)


def core_pid(engine):
    return engine.llm_engine.engine_core.resources.engine_manager.processes[0].pid


def stop(engine):
    engine.llm_engine.engine_core.shutdown()


def scenario_dense(folder):
    engine = build(folder / "dense", num_gpu_blocks_override=24)
    mixed_work(engine)
    stop(engine)


def scenario_moe(folder):
    engine = build(folder / "moe", num_gpu_blocks_override=24)
    mixed_work(engine)
    stop(engine)


def scenario_asynchronous(folder):
    """vLLM's asynchronous scheduler, two batches in flight as on a GPU, with a model that always answers 7.

    vLLM turns asynchronous scheduling off on CPU, so the engine's loop is played here: the real scheduler, the
    real requests, a batch queue of two.
    """
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.request import Request

    limits = {"max_model_len": 512, "max_num_batched_tokens": 128, "max_num_seqs": 4, "block_size": BLOCK_SIZE}
    arguments = EngineArgs(model=str(folder / "dense"), enable_prefix_caching=False, **limits)
    scheduler = asynchronous_scheduler(arguments.create_engine_config())
    for number, prompt in enumerate(prompts(3, 150)):
        parameters = SamplingParams(ignore_eos=True, max_tokens=5 + number)
        parameters.update_from_generation_config({}, 2)
        scheduler.add_request(Request(f"r{number}", prompt, parameters, None))
    in_flight = []
    while scheduler.has_requests() or in_flight:
        if scheduler.has_requests():
            output = scheduler.schedule()
            in_flight.append((output, model_answer(scheduler, output)))
        if len(in_flight) == 2 or not scheduler.has_requests():
            scheduler.update_from_output(*in_flight.pop(0))
    scheduler.shutdown()


def asynchronous_scheduler(config):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from srfa.vllm.scheduler import TracingScheduler

    config.scheduler_config.async_scheduling = True
    config.cache_config.num_gpu_blocks = 64
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    cache = KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return TracingScheduler(
        vllm_config=config,
        kv_cache_config=cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
    )


def model_answer(scheduler, output):
    """One sampled token for each request whose prompt is done, as the model runner would give."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(output.num_scheduled_tokens)
    done = [not scheduler.requests[name].is_prefill_chunk for name in names]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[7] if is_done else [] for is_done in done],
    )


def scenario_killed(folder):
    """Kill the engine core while it decodes. Comes last: vLLM's client does not survive it."""
    engine = build(folder / "dense")
    generate(engine, prompts(2, 16), 2)
    threading.Thread(target=kill_at_work, args=(core_pid(engine), folder / "killed.jsonl")).start()
    for round_number in range(1000):
        generate(engine, prompts(16, 16, seed=round_number), 200)


def kill_at_work(pid, trace):
    while trace.read_bytes().count(b"\n") < 40:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    os._exit(0)


def scenario_exploding(folder):
    """A hook that fails in every step: the engine must answer as if nothing were wrong."""
    healthy, Recorder.composed = Recorder.composed, explode
    engine = build(folder / "dense")
    answers = generate(engine, prompts(4, 40), 30)
    (folder / "exploding.outcome").write_text(" ".join(str(len(a.outputs[0].token_ids)) for a in answers))
    stop(engine)
    Recorder.composed = healthy


def explode(self, scheduler, scheduler_output):
    raise ZeroDivisionError("planted")


def scenario_steady(folder):
    """32 identical requests decoding together: what recording costs, and how steady the CPU clocks are."""
    engine = build(folder / "dense", max_num_batched_tokens=2048)
    for seed in range(2):
        generate(engine, prompts(32, 32, seed), 100)
    stop(engine)


def scenario_untraced(folder):
    """Without a trace path the engine runs as it would without us."""
    os.environ.pop("SRFA_TRACE_PATH")
    engine = build(folder / "dense")
    answers = generate(engine, prompts(1, 40), 3)
    (folder / "untraced.outcome").write_text(str(len(answers[0].outputs[0].token_ids)))
    stop(engine)


def scenario_schedules(folder):
    """Engines that have all their requests before the first step."""
    from tests.vllm.recorded_schedules import record_all

    record_all(folder)


def fork_processes():
    """Let vLLM fork its processes: on CPU it asks for spawn, and each would import everything again."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    update = platform.check_and_update_config

    def update_then_fork(_, config):
        update(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config = classmethod(update_then_fork)


def scenario_lifeline(folder):
    """Work, rest, work again, say so, and wait to be killed."""
    engine = build(folder / "dense")
    generate(engine, prompts(2, 16), 4)
    time.sleep(1.5)
    generate(engine, prompts(2, 16), 4)
    (folder / "lifeline.ready").touch()
    time.sleep(120)


def main():
    folder = Path(sys.argv[1])
    if sys.argv[2:] != ["lifeline"]:
        fork_processes()
    for name in sys.argv[2:]:
        os.environ["SRFA_TRACE_PATH"] = str(folder / f"{name}.jsonl")
        begin = time.monotonic()
        globals()[f"scenario_{name}"](folder)
        sys.stderr.write(f"scenario {name}: {time.monotonic() - begin:.1f} s\n")


if __name__ == "__main__":
    main()
