"""The command line on public measurements; skipped where they are absent."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from srfa.cli import main
from srfa.coefficients import read_coefficients
from srfa.validate import read_reports
from tests.steps import ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main([*map(str, arguments), "--gpus", f"{ROOT}/hardware", "--models", f"{ROOT}/models"])


def test_srfa_seed_fits_and_validates_across_gpus(shared_data, run, tmp_path, capsys):
    steps = shared_data / "steps_a100_h100.parquet"
    assert run("fit", steps, "--estimator", "srfa-seed", "--out", "c.json") == 0
    assert read_coefficients(tmp_path / "c.json").converged
    assert run("validate", steps, "--split", "leave-one-gpu-out", "--estimator", "srfa-seed", "--out", "r.json") == 0
    (report,) = read_reports(tmp_path / "r.json")
    assert [fold.held_out for fold in report.folds] == ["a100-sxm-80gb", "h100-sxm-80gb"]
    assert all(20 < fold.errors.mape_pct < 50 for fold in report.folds)
    assert "h100-sxm-80gb" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nrrl", "lacm", "hamm", "jams", "forest"])
def test_unseen_hardware_is_predicted_well_or_badly_but_positive_and_finite(shared_data, run, tmp_path, name):
    steps = shared_data / "steps_a100_h100.parquet"
    settings = ("--split", "leave-one-gpu-out", "--estimator", name, "--predictions", "p.parquet", "--out", "r.json")
    assert run("validate", steps, *settings) == 0
    (report,) = read_reports(tmp_path / "r.json")
    assert all(fold.converged and not fold.failure for fold in report.folds)
    predicted = pq.read_table(tmp_path / "p.parquet")["predicted_step_time_us"].to_numpy()
    assert len(predicted) == report.n_steps
    assert np.isfinite(predicted).all()
    assert predicted.min() >= 1.0


def test_blackbox_predicts_what_it_measured_and_refuses_another_gpu(shared_data, run, tmp_path):
    steps = shared_data / "steps_a100_h100.parquet"
    assert run("fit", steps, "--estimator", "blackbox", "--out", "c.json") == 0
    assert run("predict", steps, "--coefficients", "c.json", "--out", "p.parquet") == 0
    assert run("predict", shared_data / "steps_rtxpro6000_mixed.parquet", "--coefficients", "c.json", "--out", "q") == 5
    assert not (tmp_path / "q").exists()


def test_the_projection_onto_blis_is_within_its_strictness(shared_data, run, tmp_path):
    steps = shared_data / "steps_a100_h100.parquet"
    assert run("fit", steps, "--estimator", "roofline", "--out", "c.json") == 0
    assert run("export", steps, "--coefficients", "c.json", "--format", "blis", "--out", "blis") == 0
    assert set(json.loads((tmp_path / "blis" / "hardware_config.json").read_text())) == {
        "a100-sxm-80gb",
        "h100-sxm-80gb",
    }


def test_time_inside_schedule_is_refused_as_a_label(shared_data, run, capsys):
    assert run("fit", shared_data / "raw_step_summaries_h100.parquet", "--out", "c.json") == 5
    assert "step.duration_us" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["steps_rtxpro6000_mixed", "steps_h100_vllm_traces", "steps_splitwise_llama2_70b"])
def test_every_public_file_can_be_validated_by_job(shared_data, run, tmp_path, name):
    steps = shared_data / f"{name}.parquet"
    assert run("validate", steps, "--split", "leave-one-job-out", "--estimator", "roofline", "--out", "r.json") == 0
    (report,) = read_reports(tmp_path / "r.json")
    assert report.pooled.mape_pct < 100


def test_intervals_hold_most_steps_of_models_and_tp_sizes_that_were_held_out(shared_data, run, tmp_path):
    steps, splits = shared_data / "steps_a100_h100.parquet", ("leave-one-model-out", "leave-one-tp-out")
    asked = [part for split in splits for part in ("--split", split)]
    assert run("validate", steps, *asked, "--estimator", "roofline", "--coverage", "--out", "r.json") == 0
    for report in read_reports(tmp_path / "r.json"):
        shares = [group.share_inside for group in report.coverage]
        assert 0.85 < sum(shares) / len(shares) < 0.97


def test_steps_of_another_card_and_engine_are_graded_as_strangers(shared_data, run, tmp_path):
    assert run("fit", shared_data / "steps_a100_h100.parquet", "--estimator", "roofline", "--out", "c.json") == 0
    other = shared_data / "steps_rtxpro6000_mixed.parquet"
    assert run("predict", other, "--coefficients", "c.json", "--out", "p.parquet") == 0
    table = pq.read_table(tmp_path / "p.parquet", columns=["model", "domain_grade", "domain_reason"])
    grades = {(row["model"].rpartition("/")[2], row["domain_grade"]) for row in table.to_pylist()}
    assert grades == {("Llama-3.1-8B", 3), ("Qwen3-32B", 4)}
    assert all("GPU rtx-pro-6000-96gb was not in the fit" in one for one in table["domain_reason"].to_pylist())
