import json
import math
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from srfa import cli
from srfa.cli import app, main
from srfa.coefficients import read_coefficients, write_coefficients
from srfa.estimators import ESTIMATORS, estimator_named
from srfa.export import check_blis
from srfa.identification import Helpful, Identification, Parameter
from srfa.trust_verbs import show_identification
from srfa.validate import read_reports
from tests.planted import GPUS, planted_table, scaled_labels
from tests.steps import ROOT
from tests.test_microbenchmark import H100

VERBS = {
    "expand", "plan", "probe", "ingest", "fit", "predict", "validate", "compare", "gate", "export", "report", "physics",
    "identify",
    "replay", "simulate",
}  # fmt: skip
GRADED = {"domain_grade", "domain_reason", "leverage_ratio"}
LIMITS = "splits:\n  leave-one-gpu-out:\n    max_mape_pct: {}\n"
MATRIX = """
name: test
axes:
  models: [Qwen/Qwen3-8B]
  gpus: [h100-sxm-80gb]
  parallelism:
    - {tensor_parallel_size: 1}
    - {tensor_parallel_size: 3}
workloads:
  short: {random_input_len: 64, random_output_len: 32}
"""


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("observations") / "observations.parquet"
    pq.write_table(planted_table(noise=0.02), path)
    return str(path)


@pytest.fixture(scope="module")
def fitted(measured, tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted") / "c.json"
    assert run("fit", measured, "--estimator", "roofline", "--out", path) == 0
    return str(path)


def run(*arguments):
    folders = [] if arguments[0] in {"--help"} else ["--gpus", ROOT / "hardware", "--models", ROOT / "models"]
    return main([str(part) for part in (*arguments, *folders)])


def validated(measured, *more):
    return run(
        "validate", measured, "--split", "leave-one-gpu-out", "--estimator", "roofline", "--out", "r.json", *more
    )


def test_the_verbs_are_those_that_work_and_no_others(capsys):
    assert {command.callback.__name__ for command in app.registered_commands} == VERBS
    assert main([]) == 0
    assert set(re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE)) >= VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example_and_the_common_options(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: srfa {verb} " in text
    for option in ("--gpus", "--models", "--seed", "--jobs", "--json"):
        assert option in text


def test_the_installed_command_starts():
    done = subprocess.run([sys.executable, "-m", "srfa.cli", "--help"], capture_output=True, text=True, check=True)
    assert "srfa [OPTIONS] COMMAND" in done.stdout or "COMMAND" in done.stdout


def test_expand_lists_jobs_and_the_reason_of_each_skipped_cell(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(MATRIX)
    assert run("expand", "m.yaml", "--explain") == 0
    text = capsys.readouterr().out
    assert "1 jobs" in text
    assert "num_attention_heads=32" in text
    assert run("expand", "m.yaml", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [len(document["jobs"]), len(document["skipped"])] == [1, 1]
    assert document["jobs"][0]["workload"]["name"] == "short"


def test_plan_adds_up_server_starts_and_cost(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(MATRIX)
    assert run("plan", "m.yaml", "--price", "h100-sxm-80gb=2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["server_starts"] == document["jobs"] == 1
    assert document["cost"] == pytest.approx(2 * document["gpu_hours"])
    assert run("plan", "m.yaml") == 0


def test_fit_writes_coefficients_with_provenance_and_shows_units(measured, capsys):
    assert run("fit", measured, "--estimator", "srfa-seed", "--out", "new/c.json") == 0
    fit = read_coefficients(cli.Path("new/c.json"))
    assert fit.provenance.gpus == GPUS
    assert list(fit.provenance.data_sha256) == ["observations.parquet"]
    assert len(fit.provenance.job_ids) == 18
    assert fit.provenance.library_versions["numpy"]
    shown = capsys.readouterr()
    assert "us/log(1 + requests)" in shown.out
    assert "wrote new/c.json" in shown.err


def test_without_an_estimator_srfa_is_fitted_validated_and_sound(measured):
    assert run("fit", measured, "--out", "c.json") == 0
    assert read_coefficients(cli.Path("c.json")).estimator == "srfa"
    assert run("validate", measured, "--split", "leave-one-gpu-out", "--out", "r.json") == 0
    assert [report.estimator for report in read_reports(cli.Path("r.json"))] == ["srfa"]
    assert run("physics", "--coefficients", "c.json", "--batches", 300) == 0


@pytest.mark.parametrize("verb", ["fit", "validate", "compare"])
def test_help_lists_every_estimator(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert all(f"{name}," in shown or f"{name}." in shown or f"{name};" in shown for name in ESTIMATORS)


def test_json_goes_to_stdout_alone_and_words_to_stderr(measured, capsys):
    assert run("fit", measured, "--estimator", "roofline", "--out", "c.json", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["estimator"] == "roofline"
    assert "wrote c.json" in shown.err


def test_a_config_file_and_a_seed_reach_the_fit(measured, tmp_path):
    (tmp_path / "fit.yaml").write_text("huber_delta: [0.2]\nwarmup_steps: 1\n")
    assert run("fit", measured, "--estimator", "roofline", "--config", "fit.yaml", "--seed", 3, "--out", "c.json") == 0
    config = read_coefficients(cli.Path("c.json")).config
    assert (config.huber_delta, config.warmup_steps, config.seed) == ((0.2,), 1, 3)


def test_predict_keeps_every_row_and_column_and_adds_one(measured, fitted, tmp_path, capsys):
    table = planted_table(noise=0.02)
    valid = [row % 5 != 0 for row in range(table.num_rows)]
    table = table.append_column("valid", pa.array(valid)).append_column("my_note", pa.array(range(table.num_rows)))
    pq.write_table(table, tmp_path / "in.parquet")
    assert run("predict", "in.parquet", measured, "--coefficients", fitted, "--out", "new/out.parquet") == 0
    out = pq.read_table("new/out.parquet")
    assert out.num_rows == 2 * table.num_rows
    assert set(out.column_names) == {*table.column_names, "predicted_step_time_us", *GRADED}
    assert [value is not None for value in out["domain_grade"].to_pylist()[: table.num_rows]] == valid
    predicted = out["predicted_step_time_us"].to_pylist()
    assert [value is not None for value in predicted[: table.num_rows]] == valid
    assert predicted[1] == predicted[table.num_rows + 1]
    assert "MAPE" in capsys.readouterr().out


def test_predicting_a_prediction_replaces_the_column(fitted, measured):
    assert run("predict", measured, "--coefficients", fitted, "--out", "one.parquet") == 0
    assert run("predict", "one.parquet", "--coefficients", fitted, "--out", "two.parquet") == 0
    assert pq.read_table("one.parquet").equals(pq.read_table("two.parquet"))


def test_steps_without_labels_are_predicted_and_compared_with_nothing(measured, tmp_path, capsys):
    assert run("fit", measured, "--estimator", "roofline", "--intervals", "--out", "c.json") == 0
    table = pq.read_table(measured)
    assert run("predict", measured, "--coefficients", "c.json", "--out", "labelled.parquet") == 0
    wanted = pq.read_table("labelled.parquet").drop_columns(["step_time_us"])
    pq.write_table(table.drop_columns(["step_time_us"]), "planned.parquet")
    capsys.readouterr()
    assert run("predict", "planned.parquet", "--coefficients", "c.json", "--out", "p.parquet") == 0
    shown = capsys.readouterr()
    assert "MAPE" not in shown.out
    assert "no labels" in shown.err
    assert pq.read_table("p.parquet").equals(wanted)
    assert run("predict", "planned.parquet", "--coefficients", "c.json", "--out", "p.parquet", "--json") == 0
    assert json.loads(capsys.readouterr().out) is None
    assert run("fit", "planned.parquet", "--out", "d.json") == 2
    assert "planned.parquet: required column(s) step_time_us missing" in capsys.readouterr().err


def test_errors_are_those_of_the_rows_with_a_label(measured, fitted, capsys):
    table = pq.read_table(measured)
    given = [row % 3 == 0 for row in range(table.num_rows)]
    labels = pa.array([us if has else None for us, has in zip(table["step_time_us"].to_pylist(), given, strict=True)])
    pq.write_table(table.set_column(table.column_names.index("step_time_us"), "step_time_us", labels), "some.parquet")
    pq.write_table(table.filter(given), "third.parquet")
    summaries = []
    for name in ("some.parquet", "third.parquet"):
        assert run("predict", name, "--coefficients", fitted, "--out", "p.parquet", "--json") == 0
        summaries.append(json.loads(capsys.readouterr().out))
        assert pq.read_table("p.parquet")["predicted_step_time_us"].null_count == 0
    assert summaries[0] == summaries[1]
    assert summaries[0]["n_steps"] == sum(given)


def test_predict_never_replaces_one_of_its_inputs(measured, fitted, tmp_path, capsys):
    (tmp_path / "in.parquet").write_bytes(cli.Path(measured).read_bytes())
    (tmp_path / "c.json").write_bytes(cli.Path(fitted).read_bytes())
    (tmp_path / "link.parquet").symlink_to("in.parquet")
    for out in ("in.parquet", "link.parquet", "./c.json", tmp_path / "in.parquet"):
        assert run("predict", measured, "in.parquet", "--coefficients", "c.json", "--out", out) == 2
        assert f"{cli.Path(out)} is one of the inputs" in capsys.readouterr().err
    assert (tmp_path / "in.parquet").read_bytes() == cli.Path(measured).read_bytes()


def test_validate_takes_several_splits_and_keeps_predictions(measured, capsys):
    assert validated(measured, "--split", "time", "--predictions", "held_out.parquet") == 0
    assert [report.split for report in read_reports(cli.Path("r.json"))] == ["leave-one-gpu-out", "time"]
    assert set(pq.read_table("held_out.parquet")["split"].to_pylist()) == {"leave-one-gpu-out", "time"}
    text = capsys.readouterr().out
    assert "95 % interval" in text
    assert all(gpu in text for gpu in GPUS)


def test_an_impossible_split_beside_a_possible_one_is_told_and_is_no_error(measured, capsys):
    table = pq.read_table(measured)
    pq.write_table(table.filter([gpu == GPUS[0] for gpu in table["gpu"].to_pylist()]), "one.parquet")
    assert validated("one.parquet", "--split", "time") == 0
    assert "leave-one-gpu-out: not possible" in capsys.readouterr().err


def test_a_validation_without_any_possible_split_ends_with_4_and_the_reasons(measured, capsys):
    table = pq.read_table(measured)
    pq.write_table(table.filter([job == "job-00" for job in table["job_id"].to_pylist()]), "one.parquet")
    assert validated("one.parquet", "--split", "time", "--json") == 4
    said = capsys.readouterr().err
    assert "nothing was validated" in said
    assert "leave-one-gpu-out needs at least two values of gpu" in said
    assert "time needs at least two values of job_id" in said
    assert [report.pooled for report in read_reports(cli.Path("r.json"))] == [None, None]


def test_gate_passes_and_fails_by_exit_code(measured, tmp_path, capsys):
    assert validated(measured) == 0
    (tmp_path / "wide.yaml").write_text(LIMITS.format(1000))
    (tmp_path / "tight.yaml").write_text(LIMITS.format(0.001))
    assert run("gate", "r.json", "--limits", "wide.yaml", "--baseline", "r.json") == 0
    capsys.readouterr()
    assert run("gate", "r.json", "--limits", "tight.yaml", "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["passed"] is False
    assert f"leave-one-gpu-out, {GPUS[0]} held out: MAPE" in shown.err


@pytest.fixture
def calibration(tmp_path):
    (tmp_path / "h100.json").write_text(json.dumps(H100 | {"notes": {"gemm_tflops": "repeats spread by 30%"}}))
    return "h100.json"


def test_probe_runs_the_interpreter_it_is_given_and_shows_every_figure(tmp_path, capsys):
    (tmp_path / "figures.json").write_text(json.dumps(H100 | {"spread_ratio": {"gemm_tflops": 0.013}}))
    (tmp_path / "python").write_text(f'#!/bin/sh\ncp {tmp_path}/figures.json "$4"; echo "$@" > {tmp_path}/called')
    (tmp_path / "python").chmod(0o755)
    options = ("--python", tmp_path / "python", "--device", "cuda", "--dtype", "float16", "--gpu", "h100-sxm-80gb")
    assert run("probe", "--out", "m.json", "--seconds", "5", *options) == 0
    called = (tmp_path / "called").read_text().strip()
    assert called.endswith("--seconds 5.0 --device cuda --gpu h100-sxm-80gb --dtype float16")
    shown = capsys.readouterr()
    assert re.search(r"gemm_tflops\W+700\W+TFLOP/s\W+1.3", shown.out)
    assert "kernel_latency_us" in shown.out
    assert "wrote m.json" in shown.err
    assert run("probe", "--out", "m.json", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["gemm_tflops"] == 700.0


def test_a_probe_without_pytorch_ends_with_2(tmp_path, capsys):
    assert run("probe", "--out", "m.json", "--python", "/no/python") == 2
    assert "--python /no/python" in capsys.readouterr().err


def test_a_calibrated_fit_says_so_with_the_hash_of_its_figures(measured, calibration, capsys):
    arguments = ("--estimator", "roofline", "--calibrate", calibration)
    assert run("fit", measured, *arguments, "--out", "c.json") == 0
    origin = read_coefficients(cli.Path("c.json")).provenance
    assert origin.transfer == "calibrated"
    assert list(origin.transfer_sha256) == ["h100.json"]
    shown = capsys.readouterr()
    assert "calibrated" in shown.out
    assert "microbenchmark of h100-sxm-80gb: gemm_tflops: repeats spread by 30%" in shown.err
    assert run("predict", measured, "--coefficients", "c.json", "--calibrate", calibration, "--out", "p.parquet") == 0
    assert run("fit", measured, "--estimator", "roofline", "--out", "plain.json") == 0
    assert read_coefficients(cli.Path("plain.json")).provenance.transfer == "zero-shot"


def figures_seen(monkeypatch, name):
    """Note which figures of the H100 reach an estimator."""
    seen, kind = [], type(estimator_named(name))
    features = kind.features

    def spy(self, observations, catalog):
        seen.append(catalog.resolve_gpu("h100-sxm-80gb").microbenchmark)
        return features(self, observations, catalog)

    monkeypatch.setattr(kind, "features", spy)
    return seen


def test_the_measured_figures_reach_the_catalogue_of_every_verb_that_takes_them(measured, calibration, monkeypatch):
    seen = figures_seen(monkeypatch, "roofline")
    calibrate = ("--calibrate", calibration)
    assert run("fit", measured, "--estimator", "roofline", *calibrate, "--intervals", "--out", "c.json") == 0
    assert run("predict", measured, "--coefficients", "c.json", *calibrate, "--out", "p.parquet") == 0
    assert validated(measured, *calibrate) == 0
    assert run("export", measured, "--coefficients", "c.json", "--format", "blis", *calibrate, "--out", "blis") == 0
    assert run("physics", "--coefficients", "c.json", "--batches", 10, *calibrate) == 0
    assert len(seen) >= 5
    assert {found.gemm_tflops for found in seen} == {700.0}


def test_the_measured_figures_reach_the_catalogue_that_coefficients_are_identified_with(
    measured, calibration, monkeypatch
):
    assert run("fit", measured, "--estimator", "srfa-seed", "--calibrate", calibration, "--out", "c.json") == 0
    seen = figures_seen(monkeypatch, "srfa-seed")
    assert run("identify", measured, "--coefficients", "c.json", "--calibrate", calibration) == 0
    assert {found.gemm_tflops for found in seen} == {700.0}


def test_reports_of_a_calibrated_and_a_zero_shot_validation_are_not_compared(measured, calibration, tmp_path, capsys):
    (tmp_path / "wide.yaml").write_text(LIMITS.format(1000))
    assert validated(measured) == 0
    cli.Path("r.json").rename("zero.json")
    assert validated(measured, "--calibrate", calibration) == 0
    assert [report.transfer for report in read_reports(cli.Path("r.json"))] == ["calibrated"]
    assert run("gate", "r.json", "--limits", "wide.yaml", "--baseline", "r.json") == 0
    assert run("gate", "r.json", "--limits", "wide.yaml", "--baseline", "zero.json") == 2
    assert "calibrated, zero-shot" in capsys.readouterr().err


def test_a_refit_from_a_prior_is_few_shot(measured, calibration, tmp_path):
    (tmp_path / "fit.yaml").write_text("lambda_gamma: [1.0e+6]\nlambda_beta: [1.0e+6]\n")
    assert run("fit", measured, "--estimator", "srfa-seed", "--out", "source.json") == 0
    few = ("--prior", "source.json", "--config", "fit.yaml", "--calibrate", calibration)
    assert run("fit", measured, "--estimator", "srfa-seed", *few, "--out", "c.json") == 0
    source, refitted = (read_coefficients(cli.Path(name)) for name in ("source.json", "c.json"))
    assert (source.provenance.transfer, refitted.provenance.transfer) == ("zero-shot", "few-shot")
    assert set(refitted.provenance.transfer_sha256) == {"source.json", "h100.json"}
    assert refitted.blocks["compute"].values == pytest.approx(source.blocks["compute"].values, rel=1e-3, abs=1e-2)


def test_intervals_of_a_refit_from_a_prior_are_refused_because_nothing_measures_them(measured, capsys):
    assert run("fit", measured, "--estimator", "srfa-seed", "--out", "source.json") == 0
    refit = ("--estimator", "srfa-seed", "--prior", "source.json", "--intervals")
    assert run("fit", measured, *refit, "--out", "c.json") == 2
    assert "--intervals measures fits without a prior" in capsys.readouterr().err
    assert not cli.Path("c.json").exists()


def test_a_prior_of_another_estimator_is_refused_by_name(measured, fitted, capsys):
    assert run("fit", measured, "--estimator", "srfa-seed", "--prior", fitted, "--out", "new.json") == 2
    assert "estimator='roofline' cannot be the prior of 'srfa-seed'" in capsys.readouterr().err
    assert not cli.Path("new.json").exists()


@pytest.mark.parametrize("verb", ["fit", "validate", "predict"])
def test_figures_of_another_gpu_end_with_2_and_write_nothing(verb, measured, fitted, tmp_path, capsys):
    (tmp_path / "l4.json").write_text(json.dumps(H100 | {"gpu": "l4-24gb"}))
    more = {"predict": ["--coefficients", fitted], "validate": ["--split", "time"], "fit": []}[verb]
    assert run(verb, measured, *more, "--calibrate", "l4.json", "--out", "out.json") == 2
    assert "l4.json: gemm_tflops=700 is 579 %" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_export_copies_json_and_projects_for_blis(measured, fitted, capsys):
    assert run("export", "--coefficients", fitted, "--out", "copy") == 0
    assert read_coefficients(cli.Path("copy/coefficients.json")) == read_coefficients(cli.Path(fitted))
    assert run("export", measured, "--coefficients", fitted, "--format", "blis", "--out", "blis") == 0
    check_blis(yaml.safe_load(cli.Path("blis/defaults.yaml").read_text()))


def test_blis_without_observations_is_a_usage_error(fitted, capsys):
    assert run("export", "--coefficients", fitted, "--format", "blis", "--out", "blis") == 2
    assert "name the observation files" in capsys.readouterr().err
    assert not cli.Path("blis").exists()


def test_report_is_one_html_file(measured):
    assert validated(measured, "--predictions", "held_out.parquet") == 0
    cli.Path("r.json").rename("report.json")
    assert run("report", ".", "--out", "out/report.html") == 0
    assert [path.name for path in cli.Path("out").iterdir()] == ["report.html"]
    assert "data:image/png" in cli.Path("out/report.html").read_text()


def faster_than_light(path):
    pq.write_table(scaled_labels(planted_table(), 1e-3), path)


def wrong_clock(path):
    pq.write_table(pa.table({"step.id": [1], "step.duration_us": [300]}), path)


@pytest.mark.parametrize(
    ("make", "verb", "code", "says"),
    [
        (wrong_clock, "fit", 5, "step.duration_us is the CPU time inside schedule"),
        (faster_than_light, "fit", 5, "faster than light"),
        (faster_than_light, "validate", 5, "faster than light"),
        (lambda path: path.write_text("no parquet"), "fit", 2, "not a Parquet file"),
        (lambda path: None, "fit", 2, "no such file"),
    ],
)
def test_bad_observations_end_with_their_code_and_write_nothing(make, verb, code, says, tmp_path, capsys):
    make(tmp_path / "bad.parquet")
    more = ["--split", "time"] if verb == "validate" else []
    assert run(verb, "bad.parquet", "--out", "out.json", *more) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "{measured}", "--estimator", "srfa-sead", "--out", "c.json"], "did you mean 'srfa-seed'"),
        (["validate", "{measured}", "--split", "leave-one-gpu", "--out", "r.json"], "did you mean 'leave-one-gpu-out'"),
        (["fit", "{measured}"], "--out"),
        (["fit", "{measured}", "--out", "c.json", "--jobs", "0"], "--jobs"),
        (["fits"], "fits"),
        (["gate", "none.json"], "none.json"),
        (["predict", "{measured}", "--coefficients", "none.json", "--out", "p.parquet"], "srfa fit"),
        (["expand", "none.yaml"], "none.yaml"),
        (["plan", str(ROOT / "matrix.yaml"), "--price", "h100"], "NAME=AMOUNT"),
        (["report", ".", "--out", "report.pdf"], "ends in .html or .md"),
        (["ingest", "nowhere", "--out", "."], "no such folder"),
    ],
)
def test_wrong_usage_and_bad_input_end_with_2_and_say_what_to_do(arguments, says, measured, capsys):
    assert run(*(part.format(measured=measured) for part in arguments)) == 2
    assert says in capsys.readouterr().err


def test_a_faulty_config_names_its_line(measured, tmp_path, capsys):
    (tmp_path / "fit.yaml").write_text("# settings\nhuber_delta: [0.2]\nwarm_up: 3\n")
    assert run("fit", measured, "--config", "fit.yaml", "--out", "c.json") == 2
    assert "fit.yaml:3: unknown key 'warm_up'; did you mean 'warmup_steps'?" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_a_folder_without_a_finished_job_ends_with_4(tmp_path, capsys):
    (tmp_path / "traces" / "job_id=1").mkdir(parents=True)
    assert run("ingest", "traces", "--out", "out") == 4
    assert "no job was completed" in capsys.readouterr().err


def test_what_srfa_did_not_raise_on_purpose_keeps_its_traceback(measured, monkeypatch):
    def fault(_):
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr(cli, "load_observations", fault)
    with pytest.raises(ZeroDivisionError):
        run("fit", measured, "--out", "c.json")


def test_physics_shows_its_rules_writes_its_report_for_the_gate_and_ends_with_5_where_broken(measured, fitted, capsys):
    assert run("physics", "--coefficients", fitted, "--batches", 300, "--out", "physics.json") == 0
    assert "monotone_in_context" in capsys.readouterr().out
    assert run("fit", measured, "--estimator", "srfa-seed", "--out", "seed.json") == 0
    assert run("physics", "--coefficients", "seed.json", "--batches", 300, "--out", "broken.json", "--json") == 5
    shown = capsys.readouterr()
    assert "roofline_floor BROKEN" in shown.err
    assert json.loads(shown.out[shown.out.index("{") :])["estimator"] == "srfa-seed"
    assert validated(measured) == 0
    cli.Path("limits.yaml").write_text(LIMITS.format(1000) + "physics: {required: true}\n")
    assert run("gate", "r.json", "--limits", "limits.yaml", "--physics", "physics.json") == 0
    assert run("gate", "r.json", "--limits", "limits.yaml") == 1
    assert "physics is required and was not checked" in capsys.readouterr().err
    assert run("gate", "r.json", "--limits", "limits.yaml", "--physics", "broken.json") == 2
    assert "physics of srfa-seed" in capsys.readouterr().err
    told = cli.Path("told.yaml")
    told.write_text(LIMITS.format(1000) + "physics: {required: false}\n")
    split = ("--split", "leave-one-gpu-out", "--estimator", "srfa-seed")
    assert run("validate", measured, *split, "--out", "seed-r.json") == 0
    assert run("gate", "seed-r.json", "--limits", "limits.yaml", "--physics", "broken.json") == 1
    capsys.readouterr()
    assert run("gate", "seed-r.json", "--limits", told, "--physics", "broken.json") == 0
    shown = capsys.readouterr().out
    assert "told" in shown
    assert "monotone_in_context" not in shown


def test_the_gate_compares_the_coefficients_that_physics_was_checked_on(measured, fitted, capsys):
    assert run("physics", "--coefficients", fitted, "--batches", 300, "--out", "physics.json") == 0
    assert validated(measured) == 0
    cli.Path("limits.yaml").write_text(LIMITS.format(1000) + "physics: {required: true}\n")
    gate = ("gate", "r.json", "--limits", "limits.yaml", "--physics", "physics.json", "--coefficients")
    assert run(*gate, fitted) == 0
    other = read_coefficients(cli.Path(fitted))
    write_coefficients(other.model_copy(update={"constants": {"another": 1.0}}), cli.Path("other.json"))
    capsys.readouterr()
    assert run(*gate, "other.json") == 2
    assert "physics was checked on other coefficients of roofline" in capsys.readouterr().err


def test_the_gate_shows_what_is_broken_and_a_count_of_the_rest(measured, tmp_path, capsys):
    assert validated(measured) == 0
    (tmp_path / "wide.yaml").write_text(LIMITS.format(1000))
    (tmp_path / "tight.yaml").write_text(LIMITS.format(0.001))
    capsys.readouterr()
    assert run("gate", "r.json", "--limits", "wide.yaml") == 0
    assert re.fullmatch(r"gate passed: (\d+) of \1 rules hold .*\n", capsys.readouterr().out)
    assert run("gate", "r.json", "--limits", "tight.yaml") == 1
    shown = capsys.readouterr().out
    assert "max_mape_pct" in shown
    assert "min_jobs" not in shown


def test_a_report_with_an_impossible_figure_is_refused(measured, capsys):
    assert validated(measured) == 0
    report = cli.Path("r.json")
    report.write_text(re.sub(r'"mape_pct": [\d.]+', '"mape_pct": -1', report.read_text(), count=1))
    cli.Path("wide.yaml").write_text(LIMITS.format(1000))
    assert run("gate", "r.json", "--limits", "wide.yaml") == 2
    assert "r.json: reports.0" in capsys.readouterr().err


def test_coefficients_of_srfa_have_readable_units_and_say_which_the_data_never_touched(measured, capsys):
    table = pq.read_table(measured)
    dense = table.filter([not model.startswith("mistralai") for model in table["model"].to_pylist()])
    pq.write_table(dense, "dense.parquet")
    assert run("fit", "dense.parquet", "--out", "c.json") == 0
    cells = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    shown = {(row[1], row[2]): (row[4], row[5]) for row in cells if len(row) == 7}
    assert shown["memory", "gemm"] == ("1", "")
    assert shown["compute", "experts"] == ("1", "prior")
    assert shown["gpu_memory", GPUS[0]] == ("1", "")
    assert shown["linear", "kernel_latency"] == ("cycles a kernel", "")
    assert shown["linear", "moe_latency"] == ("cycles a MoE layer", "prior")
    assert shown["linear", "host_step"] == ("us/step", "")


def test_intervals_that_rest_on_priors_alone_are_announced(measured, capsys):
    table = pq.read_table(measured)
    pq.write_table(table.filter([job == "job-00" for job in table["job_id"].to_pylist()]), "one.parquet")
    assert run("fit", "one.parquet", "--estimator", "roofline", "--intervals", "--out", "c.json") == 0
    assert "every interval rests on a prior width" in capsys.readouterr().err
    assert run("fit", measured, "--estimator", "roofline", "--intervals", "--out", "c.json") == 0
    assert "prior width" not in capsys.readouterr().err


def test_identify_offers_no_job_that_tells_nothing(capsys):
    idle = Parameter(name="a.b", influence=0, variance_inflation=math.inf, log_sd=1, at_bound=False, weak=True)
    useless = Helpful(parameter="a.b", job="short", variance_left=0.999)
    known = {"estimator": "x", "n_steps": 1, "n_jobs": 1, "residual_log_sd": 0.1, "condition_number": 1.0}
    show_identification(Identification(**known, parameters=(idle,), correlated=(), groups=(), helpful=(useless,)))
    row = next(line for line in capsys.readouterr().out.splitlines() if "a.b" in line)
    assert [cell.strip() for cell in row.split("│")][3:4] == [">1e6"]
    assert [cell.strip() for cell in row.split("│")][-2] == "none"


def test_intervals_of_a_fit_reach_every_prediction_by_its_grade(measured, tmp_path, capsys):
    assert run("fit", measured, "--estimator", "roofline", "--intervals", "--out", "c.json") == 0
    intervals = read_coefficients(cli.Path("c.json")).intervals
    assert [one.source for one in intervals.grades][2:4] == ["leave-one-model-out", "leave-one-gpu-out"]
    table = planted_table()
    position = table.column_names.index("gpu")
    pq.write_table(table.set_column(position, "gpu", pa.array(["h200-sxm-141gb"] * table.num_rows)), "strange.parquet")
    for name, grade in ((measured, 0), ("strange.parquet", 3)):
        assert run("predict", name, "--coefficients", "c.json", "--out", "out.parquet") == 0
        out = pq.read_table("out.parquet").slice(0, 1).to_pylist()[0]
        assert out["domain_grade"] == grade
        ratio = out["predicted_step_time_us_p95"] / out["predicted_step_time_us_p05"]
        assert math.log(ratio) == pytest.approx(intervals.grades[grade].p95 - intervals.grades[grade].p05)
    assert "GPU h200-sxm-141gb was not in the fit" in out["domain_reason"]


def test_coverage_is_measured_where_asked_for_and_kept_in_the_report(measured, capsys):
    assert validated(measured, "--split", "leave-one-workload-out", "--coverage") == 0
    gpus, workloads = read_reports(cli.Path("r.json"))
    assert [one.held_out for one in gpus.coverage] == list(GPUS)
    assert [one.n_groups for one in workloads.coverage] == [2, 2, 2]
    assert "prediction intervals hold" in capsys.readouterr().out
    assert validated(measured) == 0
    assert read_reports(cli.Path("r.json"))[0].coverage == ()


def test_identify_names_what_moves_together_and_a_job_that_would_help(measured, capsys):
    assert run("fit", measured, "--estimator", "srfa-seed", "--out", "seed.json") == 0
    assert run("identify", measured, "--coefficients", "seed.json") == 0
    shown = capsys.readouterr()
    assert "fixed.base_overhead, fixed.intercept" in shown.err
    assert "EP > 1 (leaves" in shown.out
    assert run("identify", measured, "--coefficients", "seed.json", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_jobs"] == 18
    assert {one["name"] for one in document["parameters"] if one["weak"]} >= {"fixed.ep_communication"}


def test_an_estimator_with_nothing_to_identify_says_so(measured, fitted, capsys):
    assert run("identify", measured, "--coefficients", fitted) == 2
    assert "no named coefficients" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "none.parquet", "--out", "taken/c.json"],
        ["predict", "none.parquet", "--coefficients", "none.json", "--out", "taken/p.parquet"],
        ["validate", "none.parquet", "--split", "time", "--out", "taken/r.json"],
        ["validate", "none.parquet", "--split", "time", "--out", "r.json", "--predictions", "taken/p.parquet"],
        ["compare", "none.parquet", "--out", "taken/b.json"],
        ["compare", "none.parquet", "--out", "b.json", "--plot", "taken/b.png"],
        ["physics", "--coefficients", "none.json", "--out", "taken/p.json"],
        ["export", "--coefficients", "none.json", "--out", "taken"],
        ["report", "none", "--out", "taken/r.md"],
        ["ingest", "none", "--out", "taken"],
        ["probe", "--python", "none", "--out", "taken/m.json"],
    ],
)
def test_an_out_that_cannot_be_written_is_refused_before_the_inputs_are_read(arguments, tmp_path, capsys):
    (tmp_path / "taken").write_text("kept")
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert f"{arguments[-1]}: cannot be written (" in said
    assert "; name a file in a folder that you may write to" in said
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_predicting_with_other_microbenchmarks_than_the_fit_knew_is_warned_of(measured, fitted, calibration, capsys):
    assert run("fit", measured, "--estimator", "roofline", "--calibrate", calibration, "--out", "c.json") == 0
    cli.Path("same.json").write_text(cli.Path(calibration).read_text())
    missing = (
        "warning: c.json: the fit knew microbenchmark h100.json, which is not given here; add --calibrate h100.json"
    )
    cases = {
        ("c.json",): missing,
        ("c.json", "--calibrate", "h100.json"): "",
        ("c.json", "--calibrate", "same.json"): "",
        (fitted, "--calibrate", "h100.json"): f"warning: {fitted}: the fit did not know microbenchmark h100.json",
    }
    for arguments, said in cases.items():
        capsys.readouterr()
        assert run("predict", measured, "--coefficients", *arguments, "--out", "p.parquet") == 0
        shown = capsys.readouterr().err
        assert said in shown
        assert ("warning" in shown) == bool(said)


@pytest.mark.parametrize("verb", ["fit", "predict", "validate"])
def test_an_unknown_name_in_observations_is_told_with_file_column_row_and_count(verb, measured, fitted, capsys):
    table = planted_table()
    gpus = [gpu if row < 100 else "h100-smx" for row, gpu in enumerate(table["gpu"].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index("gpu"), "gpu", pa.array(gpus)), "odd.parquet")
    more = {"fit": [], "predict": ["--coefficients", fitted], "validate": ["--split", "time"]}[verb]
    assert run(verb, measured, "odd.parquet", *more, "--out", "out.json") == 2
    said = capsys.readouterr().err
    assert f"odd.parquet: column gpu in row 100 ({len(gpus) - 100} such rows): unknown GPU 'h100-smx'; did" in said
    assert not cli.Path("out.json").exists()


def test_a_report_given_as_coefficients_is_refused_with_a_remedy(measured, capsys):
    assert validated(measured) == 0
    for name in ("r.json", measured):
        assert run("predict", measured, "--coefficients", name, "--out", "p.parquet") == 2
        said = capsys.readouterr().err
        assert f"error: {name}: " in said
        assert "name the coefficients that 'srfa fit' wrote, or fit anew" in said
