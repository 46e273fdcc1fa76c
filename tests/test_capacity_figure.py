import pytest

from srfa.capacity_figure import draw_what_if
from srfa.simulate.latency import Latencies, Quantiles, ServedSummary
from srfa.specs import EngineArgs
from srfa.what_if_report import CapacityCurve, Deployment, KeptRate, RatePoint, Reach, WhatIf, best_of, parse_objectives


def latencies(ms):
    quantiles = Quantiles(mean=ms, p50=ms, p90=ms, p99=ms)
    return Latencies(ttft_ms=quantiles, tpot_ms=None, e2e_ms=quantiles)


def point(rate, ms, *, grows=False, ends=False):
    served = ServedSummary(
        n_requests=10, n_steps=10, duration_s=1.0, request_throughput=rate or 3.0, output_throughput=1.0,
        mean_in_flight=1.0, cached_share=0.0, num_preemptions=0, latency=latencies(ms),
    )  # fmt: skip
    near = {"faster": latencies(0.9 * ms), "slower": latencies(1.1 * ms)} if ends else {}
    return RatePoint(request_rate=rate, grows=grows, met=None, served=served, reach=Reach(grade=0, reason="x"), **near)


def curve(rate, gpus=1, points=()):
    engine = EngineArgs(tensor_parallel_size=gpus)
    deployment = Deployment(model="m", gpu="g", engine=engine)
    kept = None if rate is None else KeptRate(rate=rate)
    return CapacityCurve(deployment=deployment, gpu_count=gpus, num_gpu_blocks=1, points=points, kept=kept)


def answer(*curves, slo="p90_ttft_ms=50"):
    return WhatIf(estimator="srfa", seed=0, workload=None, objectives=parse_objectives(slo), curves=curves)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_curve_with_its_limit_is_drawn(tmp_path, ending):
    path = tmp_path / f"curve.{ending}"
    points = (point(1.0, 10.0, ends=True), point(2.0, 20.0, ends=True), point(3.0, 90.0, grows=True, ends=True))
    draw_what_if(answer(curve(2.1, points=points)), path)
    assert path.stat().st_size > 1000


def test_the_limit_is_named_in_the_picture(tmp_path):
    path = tmp_path / "curve.svg"
    draw_what_if(answer(curve(None, points=(point(None, 5.0),))), path)
    assert "p90_ttft_ms" in path.read_text()


def test_an_answer_without_a_run_is_drawn_too(tmp_path):
    draw_what_if(answer(slo=""), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def test_the_best_has_the_fewest_gpus_a_rate_and_of_equals_the_fewest_gpus():
    assert best_of([curve(2.0), curve(9.0, 4), curve(0.0, 8)]) == 1
    assert best_of([curve(4.0, 2), curve(2.0, 1)]) == 1
    assert best_of([curve(None), curve(0.0)]) is None
