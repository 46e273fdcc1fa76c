import gzip
import json

import pytest

from srfa.cli import main
from srfa.coefficients import write_coefficients
from srfa.fallback_file import FALLBACKS_FILE, Fallback, write_fallbacks
from srfa.what_if_report import WhatIf
from tests.simulated import linear_coefficients
from tests.steps import ROOT

FOLDERS = ("--gpus", ROOT / "hardware", "--models", ROOT / "models")
PLACE = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "l4-24gb", "--max-model-len", "2048", "--max-num-seqs", "16")
WORDS = ("--workload", "random_input_len=200,random_output_len=20,num_prompts=60,request_rate=2")


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "coefficients.json"
    write_coefficients(linear_coefficients(), path)
    return ("--coefficients", path)


def run(*arguments):
    return main([str(part) for part in ("simulate", *arguments, *FOLDERS)])


def answer(path):
    return WhatIf.model_validate_json(path.read_text())


def test_a_workload_is_served_once_at_its_own_times(tmp_path, capsys, clock):
    out = tmp_path / "results.json"
    assert run(*PLACE, *WORDS, *clock, "--out", out) == 0
    (curve,) = answer(out).curves
    (point,) = curve.points
    assert point.request_rate is None
    assert point.served.n_requests == 60
    assert curve.deployment.engine.max_num_seqs == 16
    shown = capsys.readouterr()
    assert "as given" in shown.out
    assert "P99 of 60 requests" in shown.err


@pytest.mark.parametrize(("gpu", "is_told"), [("l4-24gb", True), ("h100-sxm-80gb", False)])
def test_a_configuration_with_a_better_black_box_in_the_release_is_told(tmp_path, capsys, gpu, is_told):
    fitted = linear_coefficients()
    fallback = Fallback(
        configuration=f"meta-llama/Llama-3.1-8B on {gpu}, tp1 ep1 dp1, bfloat16",
        sentence="median E2E error 30.0 % is above the limit 10 %; its own black box has 2.0 %",
        job_ids=("a", "b"),
        estimator_e2e_pct=30.0,
        held_out_e2e_pct=2.0,
        in_sample_e2e_pct=1.5,
        coefficients=fitted,
    )
    write_coefficients(fitted, tmp_path / "coefficients.json")
    write_fallbacks("srfa", [fallback], tmp_path / FALLBACKS_FILE)
    named = ("--coefficients", tmp_path / "coefficients.json")
    assert run(*PLACE, *WORDS, *named, "--out", tmp_path / "results.json") == 0
    assert (f"{FALLBACKS_FILE}: {fallback.sentence}" in capsys.readouterr().err.replace("\n", " ")) is is_told


def test_json_is_what_was_written(tmp_path, capsys, clock):
    out = tmp_path / "results.json"
    assert run(*PLACE, *WORDS, *clock, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_objectives_and_a_sweep_name_the_deployment_with_the_fewest_gpus(tmp_path, capsys, clock):
    out, plot = tmp_path / "results.json", tmp_path / "curve.svg"
    objectives = ("--slo", "p90_ttft_ms=2000,p90_tpot_ms=300", "--sweep", "max_num_seqs=2,16", "--num-prompts", 300)
    assert run(*PLACE, *WORDS, *clock, *objectives, "--out", out, "--plot", plot) == 0
    found = answer(out)
    assert [curve.deployment.engine.max_num_seqs for curve in found.curves] == [2, 16]
    assert found.best == 1
    assert found.curves[1].kept.rate > found.curves[0].kept.rate > 0
    assert "fewest GPUs" in capsys.readouterr().out
    assert plot.read_text().lstrip().startswith("<?xml")


def test_parallel_sizes_are_tried_and_processes_change_nothing(tmp_path, clock):
    texts = []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.json"
        tried = ("--best-parallelism", "--rates", "1,4", "--jobs", jobs)
        assert run(*PLACE, *WORDS, *clock, *tried, "--out", out) == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1]
    sizes = [curve.gpu_count for curve in answer(tmp_path / "1.json").curves]
    assert sizes == [1, 2, 4, 8][: len(sizes)]
    assert len(sizes) > 1


def test_requests_of_a_file_are_served(tmp_path, clock):
    path, out = tmp_path / "r.csv", tmp_path / "results.json"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,200,5\n")
    assert run(*PLACE, "--requests", path, *clock, "--out", out) == 0
    assert answer(out).curves[0].points[0].served.n_requests == 2
    assert answer(out).workload is None


def test_a_job_is_rehearsed_and_ingested(tmp_path, capsys, clock):
    out, traces = tmp_path / "results.json", tmp_path / "traces"
    noise = ("--step-noise", 0.05, "--slow-steps", 0.01)
    assert run(*PLACE, *WORDS, *clock, "--trace-out", traces, *noise, "--out", out) == 0
    (manifest,) = traces.rglob("manifest.json")
    assert json.loads(manifest.read_text())["run_id"] == "rehearsal"
    assert b"simulated" in gzip.decompress((manifest.parent / "trace.jsonl.gz").read_bytes()).splitlines()[0]
    assert main(["ingest", str(traces), "--out", str(tmp_path / "runs"), *map(str, FOLDERS)]) == 0
    assert (tmp_path / "runs" / "observations" / "run_id=rehearsal" / "observations.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PLACE, *WORDS), "name --coefficients of a fit, or take --latency-mode roofline"),
        ((*PLACE, *WORDS, "--latency-mode", "rooflin"), "expected one of srfa"),
        ((*PLACE, "--latency-mode", "roofline"), "give one of --job, --requests and --workload"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--slo", "p99_ttft=3"), "did you mean 'p99_ttft_ms'"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--sweep", "seats=3"), "unknown knob 'seats'"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--rates", "fast"), "expected requests a second"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--plot", "x.gif"), "a picture ends in"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--step-noise", "0.1"), "name their folder with --trace-out"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--slow-steps", "0.1"), "name their folder with --trace-out"),
        ((*PLACE, *WORDS, "--latency-mode", "roofline", "--job-id", "abc"), "give that file with --job"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(tmp_path, capsys, arguments, said):
    out = tmp_path / "results.json"
    assert run(*arguments, "--out", out) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("wrong", [("--slo", "p99_ttft=3"), ("--rates", "fast"), ("--sweep", "seats=3")])
def test_a_call_that_is_refused_leaves_no_traces(tmp_path, clock, wrong):
    traces = tmp_path / "traces"
    assert run(*PLACE, *WORDS, *clock, "--trace-out", traces, *wrong, "--out", tmp_path / "r.json") == 2
    assert not traces.exists()


def test_another_clock_than_the_fits_has_nothing_of_the_fit(tmp_path, clock):
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    assert run(*PLACE, *WORDS, *clock, "--out", own) == 0
    assert run(*PLACE, *WORDS, *clock, "--latency-mode", "roofline", "--out", other) == 0
    assert answer(own).coefficients_sha256 == linear_coefficients().learned_sha256
    assert answer(other).coefficients_sha256 == ""
    assert answer(other).estimator == "roofline"


def test_nothing_that_can_start_ends_with_4(tmp_path, capsys):
    place = ("--model", "meta-llama/Llama-3.1-70B", "--gpu", "l4-24gb")
    assert run(*place, *WORDS, "--latency-mode", "roofline", "--out", tmp_path / "r.json") == 4
    assert "raise tensor_parallel_size" in capsys.readouterr().err


def test_a_deployment_that_cannot_start_leaves_the_others(tmp_path, capsys, clock):
    out = tmp_path / "r.json"
    assert run(*PLACE, *WORDS, *clock, "--sweep", "tensor_parallel_size=1,3", "--out", out) == 0
    assert len(answer(out).refused) == 1
    assert "does not divide" in capsys.readouterr().err


def test_every_engine_argument_is_an_option(capsys):
    assert main(["simulate", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--tensor-parallel-size", "--no-enable-prefix-caching", "--kv-cache-memory-bytes", "Example: srfa"):
        assert option in shown
