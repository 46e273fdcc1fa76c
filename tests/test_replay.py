import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from srfa.errors import InputError
from srfa.features import Block
from srfa.fit.positive import fit_between
from srfa.replay import finished_requests, job_load, outside_of, server_of
from srfa.schema import JOBS, REQUESTS
from srfa.simulate.load import RequestLoad
from srfa.traces.plugin import parse_trace
from srfa.traces.requests import requests_table
from srfa.traces.tables import jobs_table
from tests.traces.conftest import benchmark_job

DATA = Path(__file__).parent / "data"
JOB = {
    "job_id": "job",
    "gpu": "h100-sxm-80gb",
    "model": "meta-llama/Llama-3.1-8B",
    "tensor_parallel_size": 2,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 64,
    "max_model_len": 8192,
    "block_size": 16,
    "num_gpu_blocks": 1000,
}


def row(**changes):
    return dict.fromkeys(JOBS.names) | JOB | changes


def request(name, arrived_us=0, queued_us=None, **changes):
    queued_us = arrived_us + 100 if queued_us is None else queued_us
    times = {"t_arrived_ns": arrived_us, "t_queued_ns": queued_us, "t_first_token_ns": 10**6, "t_finished_ns": 10**7}
    given = {"job_id": "job", "request_id": name, "prompt_tokens": 100, "output_tokens": 5}
    return given | {column: int(us * 1000) for column, us in times.items()} | changes


def table(*requests):
    return pa.Table.from_pylist(list(requests), schema=REQUESTS)


def names_of(load):
    hashes = load.block_hashes
    return [hashes.values[a:b].tolist() for a, b in zip(hashes.offsets[:-1], hashes.offsets[1:], strict=True)]


def test_an_open_loop_has_the_recorded_arrivals_relative_to_the_first():
    load = job_load(table(request("b", 1300), request("a", 1000), request("c", 2500)), row())
    assert load.request_ids == ("a", "b", "c")
    assert load.arrival_us.tolist() == [0.0, 300.0, 1500.0]
    assert load.max_concurrency is None


def test_the_order_is_that_of_the_queue_and_arrivals_still_ascend():
    load = job_load(table(request("late", 1000, queued_us=1900), request("early", 1100, queued_us=1200)), row())
    assert load.request_ids == ("early", "late")
    assert load.arrival_us.tolist() == [100.0, 100.0]


def test_a_closed_loop_client_is_there_from_the_start_unless_it_has_a_rate():
    requests = table(request("a", 1000), request("b", 5000))
    load = job_load(requests, row(max_concurrency=8))
    assert (load.max_concurrency, load.arrival_us.tolist()) == (8, [0.0, 0.0])
    rated = job_load(requests, row(max_concurrency=8, request_rate=2.0))
    assert (rated.max_concurrency, rated.arrival_us.tolist()) == (8, [0.0, 4000.0])


def test_requests_of_other_jobs_and_unfinished_ones_are_left_out():
    requests = table(
        request("a", priority=3),
        request("other", job_id="another"),
        request("torn", t_finished_ns=None),
        request("silent", output_tokens=0),
    )
    load = job_load(requests, row())
    assert load.request_ids == ("a",)
    assert load.priority.tolist() == [3]
    with pytest.raises(InputError, match="job nobody: no finished request among 4"):
        finished_requests(requests, "nobody")


def test_recorded_names_of_blocks_are_taken_as_they_are():
    load = job_load(table(request("a", block_hashes=[7, 8]), request("b", 1), request("c", 2, block_hashes=[7])), row())
    assert names_of(load) == [[7, 8], [], [7]]


def test_without_names_a_hit_is_shared_with_the_first_earlier_request_that_is_long_enough():
    requests = table(
        request("short", 0, prompt_tokens=20),
        request("lender", 1, prompt_tokens=70),
        request("hit", 2, prompt_tokens=100, cached_tokens=32),
        request("longer", 3, prompt_tokens=100, cached_tokens=96),
        request("orphan", 4, prompt_tokens=900, cached_tokens=800),
    )
    names = names_of(job_load(requests.drop_columns("block_hashes"), row()))
    assert [len(each) for each in names] == [1, 4, 6, 6, 56]
    assert names[2][:2] == names[1][:2]
    assert names[3] == names[2]
    everything = [name for each in (names[0], names[1], names[2][2:], names[4]) for name in each]
    assert len(set(everything)) == len(everything)


def test_without_names_and_without_hits_nothing_is_shared():
    assert names_of(job_load(table(request("a"), request("b", 1)), row())) == [[], []]


def test_a_server_is_what_its_job_resolved_to():
    knobs = {"scheduling_policy": "priority", "long_prefill_token_threshold": 512, "watermark": 0.01}
    found = server_of(row(enable_prefix_caching=False, async_scheduling=True, cpu_offload_gb=2.0, **knobs))
    assert (found.max_num_batched_tokens, found.max_num_seqs, found.num_gpu_blocks) == (2048, 64, 1000)
    assert (found.scheduling_policy, found.long_prefill_token_threshold, found.watermark) == ("priority", 512, 0.01)
    assert (found.enable_prefix_caching, found.enable_chunked_prefill, found.async_scheduling) == (False, True, True)
    assert found.cpu_offload_bytes == 2 * 2**30


def test_blocks_in_host_memory_are_those_of_all_tensor_parallel_ranks(shipped):
    """Llama-3.1-8B: 2 x 32 layers x 8 KV heads x 128 x 2 bytes a token over both ranks; 16 tokens a block."""
    found = server_of(row(kv_offload_bytes=2**30), shipped)
    assert found.kv_offload_blocks == 2**30 // (2 * 32 * 8 * 128 * 2 * 16)


@pytest.mark.parametrize(
    ("model", "lockstep"), [("meta-llama/Llama-3.1-8B", False), ("mistralai/Mixtral-8x7B-v0.1", True)]
)
def test_data_parallel_engines_of_a_moe_model_step_together(shipped, model, lockstep):
    found = server_of(row(data_parallel_size=2, model=model), shipped)
    assert (found.data_parallel_size, found.lockstep) == (2, lockstep)


def test_what_a_scheduler_needs_and_nobody_recorded_is_named():
    with pytest.raises(InputError, match="job job: num_gpu_blocks is not recorded"):
        server_of(row(num_gpu_blocks=None))
    with pytest.raises(InputError, match="give the catalogue"):
        server_of(row(data_parallel_size=2))
    with pytest.raises(InputError, match="scheduling_policy='lifo' should be fcfs or priority"):
        server_of(row(scheduling_policy="lifo"))


def block(**values):
    """Coefficients as a fit makes them, of these values."""
    count = len(values)
    columns = Block(tuple(values), ("us",) * count, np.eye(count))
    targets = np.array(list(values.values()))
    return fit_between(columns, targets, targets, what="planted", max_rows=9)


def test_delays_are_those_of_the_fitted_models(shipped):
    load = RequestLoad.of(np.zeros(3), np.array([100, 200, 300]), np.array([5, 6, 7]))
    blocks = {
        "alpha": block(intercept=300.0, prompt_tokens=2.0),
        "post": block(intercept=70.0),
        "alpha_token": block(output_tokens=4.0),
        "between_steps": block(intercept=200.0, scheduled_requests=10.0),
        "wall_ratio": block(**{"cpu-1t": 1.2}),
    }
    found = outside_of(blocks, load, server_of(row()), gpu="cpu-1t", catalog=shipped)
    assert found.alpha_us == pytest.approx([500.0, 700.0, 900.0])
    assert found.post_us == pytest.approx([70.0] * 3)
    assert found.alpha_token_us == pytest.approx([4.0] * 3)
    between = (found.between_steps_us, found.between_steps_request_us)
    assert (*between, found.wall_ratio) == pytest.approx((200.0, 10.0, 1.2))
    found = outside_of(blocks, load, server_of(row(async_scheduling=True)), gpu="cpu-1t", catalog=shipped)
    assert (found.between_steps_us, found.between_steps_request_us) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("measured", "gpu", "ratio"),
    [
        ({"cpu-1t": 1.3, "cpu-old": 9.0, "h100-sxm-80gb": 1.0}, "cpu-1t", 1.3),
        ({"cpu-1t": 1.3, "cpu-old": 9.0, "h100-sxm-80gb": 1.0}, "cpu-1t-lite", 1.3),
        ({"cpu-1t": 1.3, "cpu-old": 9.0, "h100-sxm-80gb": 1.0}, "h200-sxm-141gb", 1.0),
        ({"h100-sxm-80gb": 1.0, "a100-sxm-80gb": 1.1}, "cpu-1t", 1.0),
        ({"cpu-1t": 1.3, "cpu-1t-lite": 1.5, "h100-sxm-80gb": 1.0}, "cpu-new", 1.4),
    ],
)
def test_a_gpu_nobody_measured_loses_wall_time_only_where_its_label_is_cpu_time(shipped, measured, gpu, ratio):
    """The last one is a profile made at run time; ``cpu-old`` is in the fit and no longer in the catalogue."""
    known = shipped.with_gpu(shipped.gpus["cpu-1t"].model_copy(update={"name": "cpu-new"}))
    load = RequestLoad.of(np.zeros(1), np.array([1]), np.array([1]))
    found = outside_of({"wall_ratio": block(**measured)}, load, server_of(row()), gpu=gpu, catalog=known)
    assert found.wall_ratio == pytest.approx(ratio)


def test_without_models_nothing_lies_outside_the_steps(shipped):
    load = RequestLoad.of(np.zeros(2), np.array([1, 2]), np.array([1, 2]))
    found = outside_of({}, load, server_of(row()), gpu="any", catalog=shipped)
    assert not np.concatenate([found.alpha_us, found.post_us, found.alpha_token_us]).any()
    assert (found.between_steps_us, found.between_steps_request_us, found.wall_ratio) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("recording", ["dense", "moe"])
def test_a_recording_becomes_a_load_and_a_server(recording):
    with gzip.open(DATA / f"trace_{recording}.jsonl.gz") as file:
        records = parse_trace(file.readlines())
    job = benchmark_job(max_concurrency=4)
    (described,) = jobs_table(job, records.engine, run_id="r").to_pylist()
    requests = requests_table(records, None, job)
    load, server = job_load(requests, described), server_of(described)
    assert (load.n_requests, load.max_concurrency) == (requests.num_rows, 4)
    assert (server.num_gpu_blocks, server.block_size) == (records.engine.num_gpu_blocks, records.engine.block_size)
    hits = finished_requests(requests, job.job_id)["cached_tokens"].to_numpy() // server.block_size
    seen: set[int] = set()
    for hit, names in zip(hits, names_of(load), strict=True):
        assert seen.issuperset(names[:hit])
        seen.update(names)
    assert hits.any()
