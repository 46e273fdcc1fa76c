"""Jobs that a simulation served, as the tables of a measured run: what a fit to them should find is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.estimators.blackbox import configuration_name
from srfa.estimators.floor import FLOOR
from srfa.observations import Observations, configuration_of, from_table
from srfa.replay import job_load, server_of
from srfa.run_tables import Tables
from srfa.schema import JOBS, REQUESTS, STEPS
from srfa.simulate.clock import clock_of
from srfa.simulate.engine import simulate
from srfa.simulate.outside import Outside
from srfa.traces.tables import observations_table
from tests.steps import catalog

ALPHA_US, ALPHA_US_A_TOKEN, POST_US, ALPHA_TOKEN_US, BETWEEN_US = 300.0, 0.4, 250.0, 6.0, 90.0
"""What lies outside the steps of every job."""
WORKLOADS = {"prefill": (900, 6), "decode": (40, 120), "mixed": (300, 60)}
"""Longest prompt and answer; lengths are drawn between half of them and them."""
_START_NS = 1_000_000_000


def quick() -> FitConfig:
    return FitConfig(lambda_gamma=(0.001,), lambda_beta=(0.001,), huber_delta=(0.1,))


def job_row(job_id: str, **changes):
    return {
        "job_id": job_id,
        "run_id": "run",
        "source": "srfa-plugin",
        "software_version": "vllm 0.32.0",
        "gpu": "h100-sxm-80gb",
        "gpu_count": 1,
        "model": "meta-llama/Llama-3.1-8B",
        "dtype": "bfloat16",
        "tensor_parallel_size": 1,
        "expert_parallel_size": 1,
        "data_parallel_size": 1,
        "workload": "mixed",
        "max_model_len": 2048,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "block_size": 16,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "cpu_offload_gb": 0.0,
        "async_scheduling": False,
        "batch_queue_size": 1,
        "num_gpu_blocks": 4096,
        "environment": "{}",
    } | changes


MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B")
ROWS = tuple(
    job_row(f"{model.partition('/')[2]}-{workload}-{repeat}", model=model, workload=workload)
    for model in MODELS
    for workload in WORKLOADS
    for repeat in range(2)
)
"""Two jobs a model and workload."""


def law() -> Coefficients:
    """A black box: 6 ms, 30 us a prefill token, 150 us a decoding one, by model half as much more."""
    blocks = {}
    for number, model in enumerate(MODELS):
        (row,) = pa.Table.from_pylist([job_row("any", model=model)], schema=JOBS).to_pylist()
        values = tuple(value * (1 + number / 2) for value in (6_000.0, 30.0, 150.0))
        blocks[configuration_name(configuration_of(row))] = CoefficientBlock(
            names=("intercept", "prefill_tokens", "decode_tokens"),
            units=("us", "tokens", "tokens"),
            values=values,
            lower=(0.0,) * 3,
            upper=(None,) * 3,
            at_bound=(False,) * 3,
            scales=(1.0,) * 3,
        )
    return Coefficients(
        estimator="blackbox", blocks=blocks, constants={FLOOR: 0.0}, converged=True, message="", config=quick()
    )


def simulated_run(coefficients: Coefficients, rows, *, slower=None, n_requests: int = 24, seed: int = 0) -> Tables:
    """Serve every job of the jobs table's ``rows``; ``slower`` says by job how many times longer all takes there."""
    parts = [
        _served_job(coefficients, row, (slower or {}).get(row["job_id"], 1.0), n_requests, seed + number)
        for number, row in enumerate(rows)
    ]
    return Tables(*(pa.concat_tables(tables) for tables in zip(*parts, strict=True)))


def observed(tables: Tables) -> Observations:
    return from_table(observations_table(tables.jobs, tables.steps, catalog().gpus))


def _served_job(coefficients, row, factor, n_requests, seed):
    jobs = pa.Table.from_pylist([row], schema=JOBS)
    (full,) = jobs.to_pylist()
    asked = _asked(full, n_requests, seed)
    load, server = job_load(pa.Table.from_pylist(asked, schema=REQUESTS), full), server_of(full)
    clock = clock_of(coefficients, configuration_of(full), catalog())
    served = simulate(load, server, clock, _outside(load), record_steps=True)
    requests = [
        given | times for given, times in zip(_in_order(asked, load), _request_times(served, factor), strict=True)
    ]
    steps = pa.Table.from_pylist(list(_step_rows(full["job_id"], served, factor)), schema=STEPS)
    return jobs, steps, pa.Table.from_pylist(requests, schema=REQUESTS)


def _asked(row, n_requests, seed):
    """Requests with their arrivals alone: about two thirds of what the engine could serve."""
    rng = np.random.default_rng(seed)
    longest = np.array(WORKLOADS[row["workload"]])
    lengths = rng.integers(longest // 2, longest + 1, (n_requests, 2)).tolist()
    arrived = _START_NS + np.cumsum(rng.exponential(60_000_000, n_requests)).astype(int)
    return [
        {
            "job_id": row["job_id"],
            "request_id": f"{row['job_id']}-{number}",
            "prompt_tokens": prompt,
            "output_tokens": answer,
            "num_preemptions": 0,
            "finish_status": "length",
            "t_arrived_ns": int(at),
            "t_queued_ns": int(at),
            "t_first_token_ns": int(at),
            "t_finished_ns": int(at),
        }
        for number, ((prompt, answer), at) in enumerate(zip(lengths, arrived, strict=True))
    ]


def _in_order(asked, load):
    by_id = {one["request_id"]: one for one in asked}
    return [by_id[request_id] for request_id in load.request_ids]


def _outside(load) -> Outside:
    ones = np.ones(load.n_requests)
    return Outside(
        ALPHA_US + ALPHA_US_A_TOKEN * load.prompt_tokens,
        POST_US * ones,
        ALPHA_TOKEN_US * ones,
        between_steps_us=BETWEEN_US,
    )


def _ns(time_us, factor):
    return _START_NS + round(time_us * factor * 1000)


def _request_times(served, factor):
    for row in range(len(served.t_arrived_us)):
        gaps = (served.tpot_us[row] * factor,) * (int(served.output_tokens[row]) - 1)
        yield {
            "cached_tokens": int(served.cached_tokens[row]),
            "num_preemptions": int(served.num_preemptions[row]),
            "t_arrived_ns": _ns(served.t_arrived_us[row], factor),
            "t_queued_ns": _ns(served.t_queued_us[row], factor),
            "t_first_scheduled_ns": _ns(served.t_first_scheduled_us[row], factor),
            "t_first_token_ns": _ns(served.t_first_token_us[row], factor),
            "t_finished_ns": _ns(served.t_finished_us[row], factor),
            "running_at_queue": int(served.running_at_queue[row]),
            "waiting_at_queue": int(served.waiting_at_queue[row]),
            "kv_usage_at_queue": float(served.kv_usage_at_queue[row]),
            "ttft_us": float(served.ttft_us[row]) * factor,
            "e2e_us": float(served.e2e_us[row]) * factor,
            "itl_us": list(gaps),
        }


def _step_rows(job_id, served, factor):
    log = served.steps
    for step in range(log.n_steps):
        rows = slice(log.offsets[step], log.offsets[step + 1])
        request, new, computed = log.request[rows], log.new_tokens[rows], log.computed_tokens[rows]
        prefill = computed < served.prompt_tokens[request]
        yield {
            "job_id": job_id,
            "step_id": step,
            "t_schedule_start_ns": _ns(log.t_start_us[step], factor),
            "t_output_ns": _ns(log.t_output_us[step], factor),
            "step_time_us": float(log.step_time_us[step]) * factor,
            "step_time_method": "output",
            "num_prefill_reqs": int(prefill.sum()),
            "num_decode_reqs": int((~prefill).sum()),
            "prefill_tokens": int(new[prefill].sum()),
            "decode_tokens": int(new[~prefill].sum()),
            "running_depth": int(log.running_depth[step]),
            "waiting_depth": int(log.waiting_depth[step]),
            "num_preempted": int(log.num_preempted[step]),
            "num_finished": int(log.num_finished[step]),
            "valid": True,
            "prefill_new_tokens": new[prefill].tolist(),
            "prefill_context_tokens": computed[prefill].tolist(),
            "decode_context_tokens": (computed + new)[~prefill].tolist(),
        }
