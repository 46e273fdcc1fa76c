"""Rehearsed jobs go the whole way of measured ones: traces, data gates, fit."""

import json

import numpy as np
import pyarrow as pa
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import UsageError
from srfa.estimators import estimator_named
from srfa.metrics import Scored, errors
from srfa.observations import from_table
from srfa.rehearsal import simulate_job
from srfa.roofline import floor_us
from srfa.simulate.noise import Noise
from srfa.specs import BenchmarkJob, EngineArgs, Workload
from srfa.traces.ingest import ingest_job
from tests.planted import planted_observations
from tests.steps import catalog

ESTIMATOR = estimator_named("srfa")
CONFIG = FitConfig(lambda_beta=(0.001,), huber_delta=(0.1,))
WORKLOADS = (
    Workload(name="prefill", random_input_len=1500, random_output_len=4, random_range_ratio=0.6, num_prompts=40,
             max_concurrency=4),
    Workload(name="decode", random_input_len=64, random_output_len=200, random_range_ratio=0.5, num_prompts=60,
             max_concurrency=48),
    Workload(name="poisson", random_input_len=500, random_output_len=80, random_range_ratio=0.5, num_prompts=80,
             request_rate=4.0),
    Workload(name="prefixes", dataset_name="prefix_repetition", num_prompts=60, max_concurrency=16,
             prefix_repetition_output_len=40),
)  # fmt: skip


def job(workload=WORKLOADS[2], model="meta-llama/Llama-3.1-8B", gpu="h100-sxm-80gb", **engine):
    args = EngineArgs(**{"max_model_len": 8192, "max_num_batched_tokens": 2048} | engine)
    return BenchmarkJob(model=model, gpu=gpu, engine=args, workload=workload, engine_version="0.32.0")


def ingested(one, *, truth=None, noise=None):
    known = catalog()
    estimator = None if truth else "roofline"
    files = simulate_job(one, known, coefficients=truth, estimator=estimator, noise=noise)
    return ingest_job(
        files, one, known.resolve_gpu(one.gpu), run_id="r", floor=lambda table: floor_us(from_table(table), known)
    )


@pytest.fixture(scope="module")
def truth():
    steps = planted_observations()
    return ESTIMATOR.fit(ESTIMATOR.features(steps, catalog()), CONFIG)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
@pytest.mark.parametrize("noise", [None, Noise(log_sd=0.05, slow_share=0.02)], ids=["exact", "noisy"])
def test_a_rehearsed_job_passes_every_data_gate(workload, noise):
    found = ingested(job(workload), noise=noise)
    assert found.passed, [one.sentence for one in found.findings if not one.passed]
    assert found.observations.num_rows == found.steps.num_rows - 1
    assert found.requests["ttft_us"].null_count == 0


def test_preempted_requests_pass_too():
    crowded = job(Workload(name="w", random_input_len=300, random_output_len=200, num_prompts=40),
                  num_gpu_blocks_override=520, max_num_seqs=64)  # fmt: skip
    found = ingested(crowded)
    assert sum(found.requests["num_preemptions"].to_pylist()) > 0
    assert found.passed


def test_a_cpu_profile_has_its_label_in_cpu_time():
    tiny = job(Workload(name="w", random_input_len=64, random_output_len=16, num_prompts=12), "srfa/tiny-dense",
               "cpu-1t", max_model_len=512, kv_cache_memory_bytes=2**26, dtype="float32", block_size=32)  # fmt: skip
    found = ingested(tiny)
    assert found.passed
    assert set(found.observations["step_time_method"].to_pylist()) == {"cpu_time"}


def test_the_run_can_never_be_taken_for_a_measurement():
    found = ingested(job())
    assert set(found.observations["software_version"].to_pylist()) == {"vllm 0.32.0+simulated"}
    assert json.loads(found.jobs["environment"][0].as_py()) == {"simulated": True}


def test_equal_jobs_leave_equal_bytes():
    first, second = (simulate_job(job(), catalog(), estimator="roofline", noise=Noise(log_sd=0.1)) for _ in range(2))
    assert first == second


def test_an_overloaded_job_fails_the_gates_as_a_measured_one_would():
    heavy = Workload(name="w", random_input_len=2000, random_output_len=100, num_prompts=400, request_rate=200.0)
    found = ingested(job(heavy, max_num_seqs=16))
    assert {one.rule for one in found.findings if not one.passed} == {"little_law", "queue_growth"}


def test_data_parallel_ranks_are_refused():
    with pytest.raises(UsageError, match="data_parallel_size=2: several ranks leave a trace each"):
        simulate_job(job(data_parallel_size=2), catalog(), estimator="roofline")


def test_a_fit_to_rehearsed_traces_recovers_what_timed_them(truth):
    places = [("meta-llama/Llama-3.1-8B", "h100-sxm-80gb", 1), ("Qwen/Qwen3-8B", "a100-sxm-80gb", 2)]
    tables = [
        ingested(
            job(workload, model, gpu, tensor_parallel_size=ranks),
            truth=truth,
            noise=Noise(log_sd=0.03, slow_share=0.01),
        ).observations
        for workload in WORKLOADS
        for model, gpu, ranks in places
    ]
    table = pa.concat_tables(tables)
    place = table.column_names.index("software_version")
    as_timed = table.set_column(place, "software_version", pa.repeat("vllm 0.32.0", table.num_rows))
    timed_us = ESTIMATOR.predict(truth, ESTIMATOR.features(from_table(as_timed), catalog()))
    steps = from_table(table)
    features = ESTIMATOR.features(steps, catalog())
    found_us = ESTIMATOR.predict(ESTIMATOR.fit(features, CONFIG), features)
    scored = errors(Scored(timed_us, found_us, np.array(steps.job_ids, dtype=np.str_)))
    assert scored.mape_pct < 2.0
    assert scored.p90_ape_pct < 4.0


def test_without_noise_labels_are_what_the_coefficients_say(truth):
    table = ingested(job(WORKLOADS[2]), truth=truth).observations
    place = table.column_names.index("software_version")
    as_timed = table.set_column(place, "software_version", pa.repeat("vllm 0.32.0", table.num_rows))
    said_us = ESTIMATOR.predict(truth, ESTIMATOR.features(from_table(as_timed), catalog()))
    np.testing.assert_allclose(table["step_time_us"].to_numpy(), said_us, atol=0.002)
