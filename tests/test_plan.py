from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srfa.catalog import load_catalog
from srfa.errors import UsageError
from srfa.matrix import Expansion
from srfa.plan import START_S, group_duration_s, group_jobs, job_duration_s, plan
from srfa.specs import BenchmarkJob, EngineArgs, Skipped, Workload

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT / "hardware", ROOT / "models")


def job(tokens=2048, tp=1, gpu="h100-sxm-80gb", **workload):
    return BenchmarkJob(
        model="meta-llama/Llama-3.1-8B",
        gpu=gpu,
        engine=EngineArgs(max_model_len=4096, max_num_batched_tokens=tokens, tensor_parallel_size=tp),
        workload=Workload(**{"name": "w", **workload}),
        engine_version="0.32.0",
    )


def test_jobs_that_differ_only_in_workload_share_a_server():
    jobs = [job(name="a"), job(name="b"), job(name="a", tokens=512)]
    groups = group_jobs(jobs)
    assert sorted(len(group.jobs) for group in groups) == [1, 2]
    assert {group.group_id for group in groups} == {each.group_id for each in jobs}


def test_the_longest_server_comes_first():
    short, long = job(tokens=512, random_output_len=10), job(tokens=1024, random_output_len=1000)
    assert [group.first for group in group_jobs([short, long])] == [long, short]
    assert [group.first for group in group_jobs([short, long], lambda each: -each.workload.random_output_len)] == [
        short,
        long,
    ]


@given(order=st.permutations([(tokens, name) for tokens in (512, 1024, 2048) for name in "ab"]))
def test_the_order_of_jobs_does_not_change_the_order_of_servers(order):
    groups = group_jobs([job(tokens=tokens, name=name) for tokens, name in order])
    usual = group_jobs([job(tokens=tokens, name=name) for tokens in (512, 1024, 2048) for name in "ab"])
    assert [group.group_id for group in groups] == [group.group_id for group in usual]
    assert sum(len(group.jobs) for group in groups) == len(order)


def test_a_plan_counts_starts_jobs_and_gpus_by_type():
    jobs = (job(name="a"), job(name="b"), job(tp=4), job(gpu="l4-24gb"))
    skipped = (Skipped(job=job(tp=3), reason="no"),)
    result = plan(Expansion(jobs, skipped), CATALOG)
    assert [(row.gpu, row.server_starts, row.jobs, row.largest_server_gpus) for row in result.rows] == [
        ("h100-sxm-80gb", 2, 3, 4),
        ("l4-24gb", 1, 1, 1),
    ]
    assert (result.server_starts, result.jobs, result.skipped) == (3, 4, 1)
    assert result.gpu_hours == pytest.approx(sum(row.gpu_hours for row in result.rows))
    assert result.cost is None


def test_gpu_hours_are_gpus_times_hours_of_their_servers():
    (group,) = group_jobs([job(tp=4)])
    result = plan(Expansion(group.jobs, ()), CATALOG)
    assert result.gpu_hours == pytest.approx(4 * group_duration_s(group, CATALOG) / 3600)
    assert result.eta_h == pytest.approx(group_duration_s(group, CATALOG) / 3600)


def test_more_nodes_shorten_the_wait_and_not_the_bill():
    jobs = tuple(job(tp=8, tokens=512 * n) for n in range(1, 9))
    one, four = (plan(Expansion(jobs, ()), CATALOG, nodes={"h100-sxm-80gb": n}) for n in (1, 4))
    assert four.eta_h == pytest.approx(one.eta_h / 4)
    assert four.gpu_hours == one.gpu_hours


def test_a_price_gives_a_cost_and_a_missing_one_leaves_the_total_open():
    expansion = Expansion((job(), job(gpu="l4-24gb")), ())
    both = plan(expansion, CATALOG, prices_per_gpu_hour={"h100-sxm-80gb": 3.0, "l4-24gb": 1.0})
    assert both.cost == pytest.approx(3 * both.rows[0].gpu_hours + both.rows[1].gpu_hours)
    assert plan(expansion, CATALOG, prices_per_gpu_hour={"l4-24gb": 1.0}).cost is None


@pytest.mark.parametrize("kind", ["prices_per_gpu_hour", "nodes"])
def test_a_price_or_node_count_of_an_unknown_gpu_is_refused(kind):
    with pytest.raises(UsageError, match=r"unknown GPU 'h100-sxm'; did you mean 'h100-"):
        plan(Expansion((job(),), ()), CATALOG, **{kind: {"h100-sxm": 1}})
    with pytest.raises(UsageError, match="should be more than 0"):
        plan(Expansion((job(),), ()), CATALOG, **{kind: {"l4-24gb": 0}})


def test_a_slow_arrival_rate_bounds_a_workload_from_below():
    assert job_duration_s(job(num_prompts=100, request_rate=0.5), CATALOG) >= 200


def test_prefill_time_is_flops_over_derated_peak():
    """1000 prompts of 1000 tokens through 8.03e9 parameters, hardly a decode step; by hand."""
    load = job(random_input_len=1000, random_output_len=1, num_prompts=1000)
    gpu = CATALOG.resolve_gpu("h100-sxm-80gb")
    flops = 2 * 8_030_261_248 * 1_000_000
    by_hand_s = flops / (gpu.datasheet.bf16_tflops * 1e12 * gpu.calibration.mfu_prefill)
    assert job_duration_s(load, CATALOG) - 5.0 == pytest.approx(by_hand_s, rel=0.05)


def test_decode_time_is_bytes_over_derated_bandwidth():
    """One request alone: 1000 steps, each reading the weights and a short cache; by hand."""
    load = job(random_input_len=1, random_output_len=1000, num_prompts=1, max_concurrency=1)
    gpu = CATALOG.resolve_gpu("h100-sxm-80gb")
    step_bytes = 2 * 8_030_261_248 + 501 * 131_072
    rate = gpu.datasheet.memory_bandwidth_tbps * 1e12 * gpu.calibration.bandwidth_efficiency
    assert job_duration_s(load, CATALOG) - 5.0 == pytest.approx(1000 * step_bytes / rate, rel=0.01)


def test_dummy_weights_are_not_loaded():
    real = job()
    dummy = real.model_copy(update={"engine": real.engine.model_copy(update={"load_format": "dummy"})})
    seconds = [group_duration_s(group_jobs([each])[0], CATALOG) for each in (real, dummy)]
    assert seconds[0] - seconds[1] == pytest.approx(2 * 8_030_261_248 / 2e9)
    assert seconds[1] == pytest.approx(START_S["cuda"] + job_duration_s(dummy, CATALOG))
