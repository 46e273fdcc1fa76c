import pyarrow as pa
import pytest

from srfa.requests import request_observations
from srfa.schema import JOBS, REQUESTS, STEPS

JOB = {
    "job_id": "job",
    "gpu": "h100-sxm-80gb",
    "model": "meta-llama/Llama-3.1-8B",
    "tensor_parallel_size": 1,
    "max_model_len": 8192,
    "max_num_seqs": 64,
}
REQUEST = {
    "job_id": "job",
    "prompt_tokens": 1000,
    "output_tokens": 3,
    "t_arrived_ns": 0,
    "t_queued_ns": 400_000,
    "t_first_scheduled_ns": 1_000_000,
    "t_first_token_ns": 2_000_000,
    "t_finished_ns": 5_000_000,
    "running_at_queue": 7,
    "waiting_at_queue": 3,
    "kv_usage_at_queue": 0.25,
    "ttft_us": 2_450.0,
    "e2e_us": 5_600.0,
}


def observed(requests, shipped, *, jobs=(JOB,), steps=()):
    tables = (
        pa.Table.from_pylist(list(rows), schema=schema)
        for rows, schema in ((requests, REQUESTS), (jobs, JOBS), (steps, STEPS))
    )
    return request_observations(*tables, shipped)


def test_times_are_differences_of_the_records_in_microseconds(shipped):
    seen = observed([REQUEST], shipped)
    assert (seen.arrival_to_queued_us[0], seen.queue_wait_us[0], seen.outside_us[0]) == (400.0, 600.0, 600.0)
    assert (seen.first_outside_us[0], seen.handover_least_us[0]) == (450.0, 400.0)
    assert (seen.running_at_queue[0], seen.waiting_at_queue[0], seen.kv_usage_at_queue[0]) == (7, 3, 0.25)


def test_rates_of_the_requests_server_by_hand(shipped):
    seen = observed([REQUEST], shipped)
    kv_us = 2 * 8 * 128 * 2 * 32 / 3.35e6
    body = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    assert seen.kv_us_per_token[0] == pytest.approx(kv_us)
    assert seen.kv_read_us[0] == pytest.approx((1001 + 1002) * kv_us)
    assert seen.prompt_compute_us[0] == pytest.approx(1000 * 2 * body / 989e6)


def test_each_request_has_the_rates_of_its_own_job(shipped):
    faster = JOB | {"job_id": "a", "tensor_parallel_size": 8}
    seen = observed([REQUEST, REQUEST | {"job_id": "a"}], shipped, jobs=[JOB, faster])
    assert seen.job_id == ("job", "a")
    assert seen.kv_us_per_token[0] / seen.kv_us_per_token[1] == pytest.approx(8.0)


def test_the_cached_share_is_of_the_prompt_and_nothing_where_it_was_not_recorded(shipped):
    seen = observed([REQUEST | {"cached_tokens": 250}, REQUEST], shipped)
    assert seen.cached_share.tolist() == [0.25, 0.0]


def test_chunked_prefill_is_vllms_default_where_it_was_not_recorded(shipped):
    jobs = [JOB | {"job_id": name, "enable_chunked_prefill": on} for name, on in (("on", True), ("off", False))]
    requests = [REQUEST | {"job_id": name} for name in ("job", "on", "off")]
    assert observed(requests, shipped, jobs=[JOB, *jobs]).chunked_prefill.tolist() == [1.0, 1.0, 0.0]


def test_unfinished_requests_are_left_out(shipped):
    seen = observed([REQUEST | {"t_finished_ns": None}, REQUEST], shipped)
    assert seen.n_requests == 1


def test_recent_preemptions_are_those_of_the_last_hundred_steps_before_it_queued(shipped):
    steps = [
        {"job_id": "job", "t_output_ns": 1_000 * number, "num_preempted": 1 if number in (50, 350, 399, 401) else 0}
        for number in range(500)
    ]
    assert observed([REQUEST], shipped, steps=steps).recent_preemptions.tolist() == [2.0]


def test_a_step_that_ran_when_a_request_came_bounds_its_hand_over(shipped):
    steps = [{"job_id": "job", "t_schedule_start_ns": 100_000, "t_output_ns": 390_000, "num_preempted": 0}]
    seen = observed(
        [REQUEST, REQUEST | {"job_id": "other"}], shipped, jobs=[JOB, JOB | {"job_id": "other"}], steps=steps
    )
    assert seen.handover_least_us.tolist() == [100.0, 400.0]
    assert seen.arrival_to_queued_us.tolist() == [400.0, 400.0]


def test_requests_of_some_jobs_keep_their_order_and_their_jobs_steps(shipped):
    names = ("b", "a", "b", "c")
    rows = [REQUEST | {"job_id": name, "prompt_tokens": 10 + number} for number, name in enumerate(names)]
    jobs = [JOB | {"job_id": name} for name in "abc"]
    steps = [{"job_id": "b", "t_schedule_start_ns": 1, "t_output_ns": 2, "num_preempted": 0}]
    seen = observed(rows, shipped, jobs=jobs, steps=steps)
    kept = seen.of_jobs({"b", "c"})
    assert sorted(zip(kept.job_id, kept.prompt_tokens, strict=True)) == [("b", 10.0), ("b", 12.0), ("c", 13.0)]
    assert set(kept.clocks) == {"b"}
