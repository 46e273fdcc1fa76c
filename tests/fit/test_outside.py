"""Planted requests: what was put in comes out, under noise and under stalls that no model explains."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from srfa.coefficients import FitConfig
from srfa.errors import FitError
from srfa.fit.outside import (
    blackbox_alphas,
    fit_between_steps,
    fit_outside,
    fit_post,
    fit_requests,
    fit_wall_ratio,
    predicted_us,
    queue_features,
)
from srfa.handover import EngineClock
from srfa.traces.plugin import parse_trace
from srfa.traces.steps import steps_table
from srfa.units import NS_PER_US
from tests.fit.test_requests import requests
from tests.steps import observations, step
from tests.traces.conftest import benchmark_job

DATA = Path(__file__).parents[1] / "data"
CONFIG = FitConfig()
ALPHA_US, ALPHA_US_PER_TOKEN, POST_US, TOKEN_US = 400.0, 1.5, 900.0, 30.0
STALL_US = 5e6


def planted(seed=0, n=500, *, step_us=20_000.0, token_us=TOKEN_US, jobs=5):
    """Requests of engines whose steps take ``step_us``; every twentieth meets a stall outside."""
    rng = np.random.default_rng(seed)
    drawn = requests(seed, n)
    starts = np.arange(0.0, 400 * step_us, step_us)
    clock = EngineClock(*((times * NS_PER_US).astype(np.int64) for times in (starts, starts + step_us - 200.0)))
    arrived_ns = (rng.uniform(0.0, 390 * step_us, n) * NS_PER_US).astype(np.int64)
    handover_us = (ALPHA_US + ALPHA_US_PER_TOKEN * drawn.prompt_tokens) * rng.uniform(0.9, 1.1, n)
    handover_us[::20] += STALL_US / 100
    whole_us = clock.queued_after_us(arrived_ns, handover_us)
    first, last = (POST_US + token_us * tokens + rng.laplace(0.0, 50.0, n) for tokens in (1, drawn.output_tokens))
    first[::20], last[::20] = first[::20] + STALL_US, last[::20] + STALL_US
    job_id = tuple(f"job-{number % jobs}" for number in range(n))
    return dataclasses.replace(
        drawn,
        job_id=job_id,
        arrived_ns=arrived_ns,
        arrival_to_queued_us=whole_us,
        handover_least_us=clock.least_handover_us(arrived_ns, arrived_ns + (whole_us * NS_PER_US).astype(np.int64) + 1),
        queue_wait_us=wait_of(drawn, rng),
        first_outside_us=first,
        outside_us=last,
        clocks=dict.fromkeys(set(job_id), clock),
    )


def wait_of(drawn, rng):
    """A step of 30 ms for every full step that the queue's prompts take."""
    features = queue_features(drawn, CONFIG)
    steps = features.values[:, features.names.index("queued_prompt_steps")]
    return (60.0 + 30_000.0 * steps) * rng.uniform(0.95, 1.05, drawn.n_requests)


@pytest.mark.parametrize("seed", range(3))
def test_planted_models_are_recovered(seed):
    blocks = fit_requests(planted(seed), CONFIG)
    assert set(blocks) == {"alpha", "queue_wait", "alpha_token", "post"}
    assert blocks["alpha"]["prompt_tokens"] == pytest.approx(ALPHA_US_PER_TOKEN, rel=0.15)
    assert blocks["post"]["intercept"] == pytest.approx(POST_US, rel=0.05)
    assert blocks["alpha_token"]["output_tokens"] == pytest.approx(TOKEN_US, rel=0.02)
    assert blocks["queue_wait"]["queued_prompt_steps"] == pytest.approx(30_000.0, rel=0.05)
    assert all(value >= 0 for block in blocks.values() for value in block.values)


def test_the_hand_over_is_found_although_every_request_waited_for_a_step_as_well():
    seen = planted()
    typical = ALPHA_US + ALPHA_US_PER_TOKEN * 2_000.0
    block = fit_requests(seen, CONFIG)["alpha"]
    found = predicted_us({"alpha": block}, "alpha", 1, prompt_tokens=np.array([2_000.0]))[0]
    assert found == pytest.approx(typical, rel=0.1)
    assert np.median(seen.arrival_to_queued_us) > 3 * typical


def test_tokens_that_are_streamed_meanwhile_cost_nothing():
    blocks = fit_post(planted(token_us=0.0), max_rows=5000)
    assert blocks["alpha_token"]["output_tokens"] == pytest.approx(0.0, abs=0.2)
    assert blocks["post"]["intercept"] == pytest.approx(POST_US, rel=0.05)


def test_a_first_token_tells_a_constant_from_a_token_where_all_requests_are_equally_long():
    seen = dataclasses.replace(planted(), output_tokens=np.full(500, 100.0))
    seen = dataclasses.replace(seen, outside_us=POST_US + TOKEN_US * seen.output_tokens)
    blocks = fit_post(seen, max_rows=5000)
    assert blocks["alpha_token"]["output_tokens"] == pytest.approx(TOKEN_US, rel=0.02)


def test_requests_without_the_clients_view_are_a_named_error():
    seen = dataclasses.replace(planted(), outside_us=np.full(500, np.nan), first_outside_us=np.full(500, np.nan))
    with pytest.raises(FitError, match="post and alpha_token: 0 usable requests for 2 coefficients"):
        fit_requests(seen, CONFIG)


def test_the_blackbox_form_is_a_mean_and_least_squares():
    seen = requests()
    seen = dataclasses.replace(
        seen, arrival_to_queued_us=np.linspace(0.0, 200.0, 500), outside_us=700.0 + 3.0 * seen.output_tokens
    )
    assert blackbox_alphas(seen) == pytest.approx((100.0, 700.0, 3.0))
    assert blackbox_alphas(dataclasses.replace(seen, outside_us=np.full(500, np.nan)))[1:] == (0.0, 0.0)


def gaps(job_id, gap_us, *, n=60, ids_by=1, finishing=0, requests=4):
    """Steps of 1 ms with a gap after each; a tenth of the gaps is a stall."""
    rows, now = [], 0.0
    for number in range(n):
        rows.append(
            {
                "job_id": job_id,
                "step_id": number * ids_by,
                "t_schedule_start_ns": int(now * NS_PER_US),
                "t_output_ns": int((now + 1_000.0) * NS_PER_US),
                "num_prefill_reqs": 0,
                "num_decode_reqs": requests,
                "running_depth": requests,
                "waiting_depth": 0,
                "num_finished": requests if finishing else 0,
            }
        )
        now += 1_000.0 + gap_us + (1e6 if number % 10 == 0 else 0.0)
    return rows


def jobs(**asynchronous):
    return pa.table({"job_id": list(asynchronous), "async_scheduling": list(asynchronous.values())})


def test_time_between_steps_is_that_of_synchronous_jobs_while_work_was_waiting():
    rows = gaps("a", 220.0, requests=2) + gaps("b", 280.0, requests=8)
    rows += gaps("idle", 9e5, finishing=1) + gaps("torn", 8e5, ids_by=2) + gaps("async", 7e5)
    known = jobs(a=False, b=False, idle=False, torn=False, **{"async": True})
    block = fit_between_steps(pa.Table.from_pylist(rows), known, max_rows=5000)
    assert block["intercept"] == pytest.approx(200.0, rel=0.02)
    assert block["scheduled_requests"] == pytest.approx(10.0, rel=0.02)


def test_asynchronous_jobs_have_no_time_between_steps():
    block = fit_between_steps(pa.Table.from_pylist(gaps("a", 500.0)), jobs(a=True), max_rows=5000)
    assert block.values == (0.0, 0.0)


@pytest.mark.parametrize("recording", ["dense", "moe"])
def test_time_between_steps_of_recordings_is_a_quarter_of_a_millisecond(recording):
    """The range is that of the gaps' quartiles, by hand from the records."""
    with gzip.open(DATA / f"trace_{recording}.jsonl.gz") as file:
        records = parse_trace(file.readlines())
    job = benchmark_job()
    block = fit_between_steps(steps_table(records, job), jobs(**{job.job_id: False}), max_rows=5000)
    scheduled = np.array([np.median(records.steps["request_ids"].combine_chunks().value_lengths())])
    typical = predicted_us({"b": block}, "b", 1, scheduled_requests=scheduled)[0]
    starts, outputs = (records.steps[name].to_numpy() for name in ("t_schedule_start_ns", "t_output_ns"))
    low, high = np.quantile((starts[1:] - outputs[:-1]) / NS_PER_US, [0.25, 0.75])
    assert low < typical < high
    assert 150.0 < typical < 500.0


def test_the_wall_ratio_is_the_gpus_median_over_jobs_and_1_where_the_label_is_wall_time():
    """Jobs of (10 + 14) / 20, 13 / 10 and 90 / 10."""
    walls = (("a", 10.0), ("a", 14.0), ("b", 13.0), ("c", 90.0))
    rows = [step(gpu="a100-sxm-80gb", job_id=job, step_time_us=10.0, step_wall_time_us=wall) for job, wall in walls]
    rows += [step(gpu="h100-sxm-80gb", job_id="a", step_time_us=10.0, step_wall_time_us=None)]
    block = fit_wall_ratio(observations(rows))
    assert dict(zip(block.names, block.values, strict=True)) == {"a100-sxm-80gb": 1.3, "h100-sxm-80gb": 1.0}
    assert fit_wall_ratio(observations([step()])).values == (1.0,)


def test_the_wall_ratio_counts_what_stalls_cost_a_job():
    """Ninety steps at their label and ten that stall: no median step would tell."""
    walls = np.where(np.arange(100) % 10, 10.0, 60.0)
    block = fit_wall_ratio(observations([step(step_time_us=10.0, step_wall_time_us=wall) for wall in walls]))
    assert block.values == pytest.approx((1.5,))


def outside(seen):
    return fit_outside(
        seen,
        CONFIG,
        steps=pa.Table.from_pylist(gaps("a", 220.0)),
        jobs=jobs(a=False),
        observations=observations([step()]),
    )


def test_a_release_has_six_blocks():
    found = outside(planted())
    assert set(found.blocks) == {"alpha", "queue_wait", "alpha_token", "post", "between_steps", "wall_ratio"}
    assert found.refusals == {}


def test_a_run_without_a_client_still_has_what_needs_none():
    """Neither hand-over nor queue, nor what the engine does between steps, is seen by the client."""
    seen = planted()
    blind = dataclasses.replace(seen, outside_us=np.full(500, np.nan), first_outside_us=np.full(500, np.nan))
    found, whole = outside(blind), outside(seen)
    assert set(found.refusals) == {"alpha_token", "post"}
    assert all("0 usable requests for 2 coefficients" in reason for reason in found.refusals.values())
    assert found.blocks == {name: whole.blocks[name] for name in ("alpha", "queue_wait", "between_steps", "wall_ratio")}


def test_a_column_of_the_queue_that_was_not_recorded_costs_the_wait_alone():
    found = outside(dataclasses.replace(planted(), waiting_at_queue=np.full(500, np.nan)))
    assert set(found.refusals) == {"queue_wait"}
    assert set(found.blocks) == {"alpha", "alpha_token", "post", "between_steps", "wall_ratio"}
