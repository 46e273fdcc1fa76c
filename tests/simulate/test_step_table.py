import numpy as np

from srfa.observations import from_table
from srfa.operator_kernels import StepTotals
from srfa.simulate.capacity import configuration_for
from srfa.simulate.clock import linear_clock
from srfa.simulate.engine import simulate
from srfa.simulate.server import Server
from srfa.simulate.step_table import step_observations
from srfa.simulate.traced import TracedRun, trace_lines
from srfa.simulate.workload import workload_load
from srfa.specs import BenchmarkJob, EngineArgs, Workload
from srfa.traces.plugin import parse_trace
from srfa.traces.steps import steps_table
from tests.steps import catalog

SERVER = Server(max_num_batched_tokens=128, max_num_seqs=16, max_model_len=256, block_size=16, num_gpu_blocks=25)


def simulated():
    words = Workload(name="w", random_input_len=80, random_output_len=30, random_range_ratio=0.5, num_prompts=15)
    load = workload_load(words, seed=2)
    clock = linear_clock(500.0, StepTotals(prefill_tokens=5.0, is_measured=0.0))
    return words, load, simulate(load, SERVER, clock, record_steps=True)


def configuration():
    known = catalog()
    return configuration_for(
        known.resolve_model("meta-llama/Llama-3.1-8B"), known.resolve_gpu("h100-sxm-80gb"), EngineArgs()
    )


def test_observations_are_those_of_the_trace_of_the_same_steps():
    words, load, served = simulated()
    found = step_observations(served.steps, load, configuration=configuration(), server=SERVER)
    run = TracedRun(load, served, SERVER, EngineArgs(), tuple(map(str, range(15))), "0.32.0")
    job = BenchmarkJob(
        model="meta-llama/Llama-3.1-8B",
        gpu="h100-sxm-80gb",
        engine=EngineArgs(),
        workload=words,
        engine_version="0.32.0",
    )
    steps = steps_table(parse_trace(list(trace_lines(run))), job)
    for name in ("prefill_tokens", "decode_tokens", "num_prefill_reqs", "num_decode_reqs"):
        np.testing.assert_array_equal(found.numbers(name), steps[name].to_numpy())
    for name in ("prefill_new_tokens", "prefill_context_tokens", "decode_context_tokens"):
        assert found.table[name].to_pylist() == steps[name].to_pylist()


def test_a_sample_is_taken_at_even_distances():
    _, load, served = simulated()
    whole, some = (
        step_observations(served.steps, load, configuration=configuration(), server=SERVER, at_most=most)
        for most in (None, 10)
    )
    assert some.n_steps == 10
    assert from_table(some.table).table.to_pylist()[-1] == whole.table.to_pylist()[-1]
