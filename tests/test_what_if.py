import math
from dataclasses import replace

import numpy as np
import pytest

from srfa.domain import training_domain
from srfa.errors import UsageError
from srfa.grades import GradeInterval, Intervals
from srfa.specs import EngineArgs, Workload
from srfa.what_if import Demand, Question, Rig, as_given, capacity_curve, kept_rate, largest_rate, saturation_rate
from srfa.what_if_report import Deployment, Objective, parse_objectives
from srfa.what_if_sweep import answered, parallelisms, swept
from tests.planted import planted_observations
from tests.simulated import linear_coefficients
from tests.steps import catalog

COEFFICIENTS = linear_coefficients()

WORDS = Workload(name="w", random_input_len=256, random_output_len=32, random_range_ratio=0.3, num_prompts=300)
SLO = (Objective(statistic="p90", metric="ttft", limit_ms=600.0),)
WIDE = (Objective(statistic="mean", metric="e2e", limit_ms=1e9),)


def question(words=WORDS, model="meta-llama/Llama-3.1-8B", gpu="l4-24gb", **engine):
    args = EngineArgs(**{"max_model_len": 2048, "max_num_seqs": 16} | engine)
    return Question(Deployment(model=model, gpu=gpu, engine=args), Demand(words, seed=1), catalog(), COEFFICIENTS)


@pytest.fixture(scope="module")
def curve():
    return capacity_curve(question(), objectives=SLO)


@pytest.mark.parametrize("limit", [0.3, 1.0, 7.0, 130.0])
def test_a_search_brackets_the_largest_rate_within_its_tolerance(limit):
    found = largest_rate(lambda rate: rate <= limit, 3.0, most=1000.0)
    assert limit / 1.021 <= found <= limit


def test_a_search_that_nothing_holds_for_says_zero():
    assert largest_rate(lambda rate: False, 3.0, most=1000.0) == 0.0


@pytest.mark.parametrize("start", [3.0, 10.0, 50.0])
def test_a_search_never_goes_beyond_what_is_served(start):
    tried = []
    assert largest_rate(lambda rate: tried.append(rate) or True, start, most=10.0) == 10.0
    assert max(tried) == 10.0


def test_latency_grows_with_the_rate_and_the_queue_grows_beyond_saturation(curve):
    first_tokens = [point.served.latency.ttft_ms.p90 for point in curve.points]
    assert first_tokens == sorted(first_tokens)
    for point in curve.points:
        if point.request_rate < 0.95 * curve.saturation_rate:
            assert not point.grows
    assert curve.points[-1].grows


def test_below_saturation_the_server_does_what_it_is_asked(curve):
    for point in curve.points[1:5]:
        assert point.served.request_throughput == pytest.approx(point.request_rate, rel=0.05)


def test_the_kept_rate_keeps_the_objectives_and_a_larger_one_breaks_them(curve):
    assert 0 < curve.kept.rate <= curve.saturation_rate * 1.02
    rig = Rig.of(question())
    assert rig.point(curve.kept.rate, SLO).met
    assert not rig.point(curve.kept.rate * 1.05, SLO).met


def test_a_limit_under_the_lightest_load_is_kept_by_no_rate():
    found = capacity_curve(question(), rates=(1.0,), objectives=(SLO[0].model_copy(update={"limit_ms": 0.01}),))
    assert found.kept.rate == 0.0
    assert found.gpus_per_rate is None


@pytest.fixture(scope="module")
def long_run_rate():
    """Departures a second in the middle half of a long overload, whatever the seed."""
    rig = Rig.of(question(WORDS.model_copy(update={"num_prompts": 20_000})))
    left_us = np.sort(rig.served(8.0).t_finished_us)
    return 10_000 / (left_us[15_000] - left_us[5_000]) * 1e6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_prompts", [1, 100, 300, 1000])
def test_saturation_is_what_a_long_run_delivers(long_run_rate, num_prompts, seed):
    asked = question(WORDS.model_copy(update={"num_prompts": num_prompts}))
    asked = replace(asked, demand=Demand(asked.demand.workload, seed=seed))
    assert 0.97 * long_run_rate <= saturation_rate(Rig.of(asked)) <= 1.02 * long_run_rate


@pytest.mark.parametrize("seed", range(4))
def test_no_limit_however_wide_is_kept_beyond_what_a_long_run_delivers(long_run_rate, seed):
    rig = Rig.of(replace(question(), demand=Demand(WORDS, seed=seed)))
    assert kept_rate(rig, SLO, 3.0) <= kept_rate(rig, WIDE, 3.0) <= 1.02 * long_run_rate


@pytest.mark.parametrize("n_requests", [1, 40])
def test_requests_of_a_file_that_come_at_once_saturate_as_if_they_came_one_by_one(tmp_path, n_requests):
    rates = []
    for spacing_s in (0.0, 1.0):
        path = tmp_path / "r.csv"
        rows = "".join(f"{row * spacing_s},256,32\n" for row in range(n_requests))
        path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
        rates.append(saturation_rate(Rig.of(replace(question(), demand=Demand(requests=path)))))
    assert rates[0] == pytest.approx(rates[1], rel=0.03)
    assert 4.0 < rates[0] < 6.0


def test_slower_steps_keep_a_lower_rate():
    rig = Rig.of(question())
    assert saturation_rate(rig, slowed=1.5) == pytest.approx(saturation_rate(rig) / 1.5, rel=0.1)


def test_an_extrapolation_is_said_and_its_interval_carried_into_latencies_and_rates():
    ends = tuple(
        GradeInterval(
            grade=grade, p05=-0.1 * (grade + 1), p95=0.1 * (grade + 1), n_groups=5, source="x", method="prior"
        )
        for grade in range(5)
    )
    steps = planted_observations()
    known = COEFFICIENTS.model_copy(
        update={"domain": training_domain(steps, catalog()), "intervals": Intervals(grades=ends)}
    )
    asked = question()
    asked = Question(asked.deployment, asked.demand, asked.catalog, known)
    found = capacity_curve(asked, rates=(1.0,), objectives=SLO)
    (point,) = found.points
    assert point.reach.grade == 3
    assert "GPU l4-24gb was not in the fit" in point.reach.reason
    assert point.reach.slower == pytest.approx(math.exp(0.4))
    middle, fast, slow = (one.e2e_ms.p50 for one in (point.served.latency, point.faster, point.slower))
    assert fast < middle < slow
    assert found.kept.slowest < found.kept.rate < found.kept.fastest


def test_a_clock_of_its_own_is_not_graded_by_the_fit_beside_it():
    steps = planted_observations()
    known = COEFFICIENTS.model_copy(update={"domain": training_domain(steps, catalog())})
    graded = replace(question(), coefficients=known)
    assert as_given(graded).points[0].reach.grade is not None
    (point,) = as_given(replace(graded, estimator="roofline")).points
    assert point.reach.grade is None
    assert "roofline was not fitted" in point.reach.reason
    assert point.slower is None


def test_given_rates_are_the_points():
    found = capacity_curve(question(), rates=(2.0, 1.0))
    assert [point.request_rate for point in found.points] == [1.0, 2.0]
    assert found.saturation_rate is None


def test_a_demand_at_its_own_times_is_one_run():
    found = as_given(question(WORDS.model_copy(update={"max_concurrency": 4})))
    (point,) = found.points
    assert point.request_rate is None
    assert point.served.mean_in_flight <= 4.0
    assert not point.grows


def test_requests_of_a_file_are_stretched_to_a_rate(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{row},64,4\n" for row in range(101)))
    load = Demand(requests=path).load(16, 50.5)
    assert load.arrival_us[-1] == pytest.approx(2e6)
    assert load.arrival_us[50] == pytest.approx(1e6)


@pytest.mark.parametrize("rate", [0.7, 3.3, 1234.567])
def test_repeated_requests_of_a_file_stay_in_order_at_any_rate(tmp_path, rate):
    path = tmp_path / "r.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{row},64,4\n" for row in range(7)))
    load = Demand(requests=path).load(16, rate, repeats=50)
    assert load.arrival_us[-1] == pytest.approx(350 / rate * 1e6)


def test_equal_questions_have_equal_answers_with_any_number_of_processes():
    questions = [question(max_num_seqs=seats) for seats in (8, 16)]
    one, two = (answered(questions, as_given, n_jobs=jobs)[0] for jobs in (1, 2))
    assert [curve.model_dump_json() for curve in one] == [curve.model_dump_json() for curve in two]


def test_another_seed_is_another_run():
    one = question()
    other = replace(one, demand=Demand(WORDS, seed=2))
    assert as_given(one).points[0].served == as_given(question()).points[0].served
    assert as_given(one).points[0].served != as_given(other).points[0].served


def test_what_cannot_start_is_refused_with_its_reason_and_the_rest_answered():
    curves, refused = answered(
        [question(), question(max_model_len=131_072), question(tensor_parallel_size=3)], as_given
    )
    assert len(curves) == 1
    assert len(refused) == 2
    assert "tensor_parallel_size=3 does not divide" in refused[1].reason


def test_a_sweep_is_every_combination():
    base = question().deployment
    found = list(swept(base, [("max_num_seqs", ["8", "16"]), ("gpu", ["l4-24gb", "l40s-48gb"])]))
    assert [(one.engine.max_num_seqs, one.gpu) for one in found] == [
        (8, "l4-24gb"), (8, "l40s-48gb"), (16, "l4-24gb"), (16, "l40s-48gb")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("knob", "said"), [(("max_num_seq", ["8"]), "did you mean 'max_num_seqs'"), (("max_num_seqs", ["many"]), "many")]
)
def test_a_knob_or_value_that_does_not_exist_is_named(knob, said):
    with pytest.raises(UsageError, match=said):
        list(swept(question().deployment, [knob]))


def test_parallel_sizes_are_those_that_start():
    sizes = [
        one.engine.tensor_parallel_size
        for one in parallelisms(question(model="meta-llama/Llama-3.1-70B", gpu="h100-sxm-80gb"))
    ]
    assert sizes == [2, 4, 8]
    spread = [
        one.engine.enable_expert_parallel
        for one in parallelisms(question(model="mistralai/Mixtral-8x7B-v0.1", gpu="h100-sxm-80gb"))
    ]
    assert any(spread)
    assert not all(spread)


@pytest.mark.parametrize("text", ["p99_ttft=500", "p98_ttft_ms=1", "p99_ttft_ms=x", "p99_ttft_ms=0", "p99_ttft_ms"])
def test_an_objective_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--slo"):
        parse_objectives(text)
