import hashlib
import json
import shutil
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from srfa import release as module
from srfa.catalog import load_catalog
from srfa.closed_loop_report import ClosedLoopReport, NotReplayed, read_closed_loop
from srfa.closed_loop_summary import closed_loop_report
from srfa.coefficients import FitConfig, read_coefficients
from srfa.estimators import estimator_named
from srfa.export import check_blis
from srfa.fallback_file import Fallback, read_fallbacks
from srfa.figures import draw_figures
from srfa.gate import Limits, check_gate
from srfa.leaderboard import read_leaderboard
from srfa.physics import check_physics
from srfa.physics_report import read_physics
from srfa.provenance import provenance_of
from srfa.release import Material, publish, read_release, release_id
from srfa.report_folder import write_report
from srfa.standings import leaderboard_of
from srfa.validate import cross_predict, cross_validate, read_reports
from tests.planted import LinearEstimator
from tests.replays import replay

LIMITS = Limits.model_validate({"splits": {"leave-one-gpu-out": {"max_mape_pct": 1000}}})


@pytest.fixture(scope="module")
def material(planted, shipped):
    roofline = estimator_named("roofline")
    fitted = roofline.fit(roofline.features(planted, shipped), FitConfig())
    fitted = fitted.model_copy(update={"provenance": provenance_of(planted, {"planted": "00"})})
    kept = cross_predict(roofline, planted, shipped, split="leave-one-gpu-out", config=FitConfig())
    decision = check_gate([kept.report], LIMITS)
    linear = cross_validate(LinearEstimator(), planted, shipped, split="leave-one-gpu-out", config=FitConfig())
    board = leaderboard_of({"observations": (kept.report, linear)})
    return Material(fitted, (kept.report,), decision, planted, shipped, held_out=kept.held_out, leaderboard=board)


@pytest.fixture(scope="module")
def published(material, tmp_path_factory):
    releases = tmp_path_factory.mktemp("releases")
    return releases / publish(material, releases).release_id


def test_a_release_holds_everything_and_says_the_hash_of_each_file(published):
    release = read_release(published)
    there = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert there == {*release.files, "provenance.json"}
    assert there >= {
        "coefficients.json",
        "report.json",
        "report.md",
        "verdict.json",
        "leaderboard.json",
        "leaderboard.png",
        "held_out.parquet",
        "parity.png",
        "residuals.png",
        "workloads.png",
        "export/defaults.yaml",
        "export/hardware_config.json",
        "hardware/h100-sxm-80gb.json",
        "models/mistralai/Mixtral-8x7B-v0.1/config.json",
    }
    for name, digest in release.files.items():
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == digest
    assert release.passed
    assert release.provenance.job_ids


def test_the_facts_in_a_release_predict_what_it_was_published_with(material, published):
    facts = load_catalog(published / "hardware", published / "models")
    roofline, fitted = estimator_named("roofline"), read_coefficients(published / "coefficients.json")
    again = roofline.predict(fitted, roofline.features(material.observations, facts))
    before = roofline.predict(material.coefficients, roofline.features(material.observations, material.catalog))
    assert np.array_equal(again, before)


def test_the_report_of_a_release_is_a_baseline(material, published):
    assert read_reports(published / "report.json") == material.reports
    assert check_gate(material.reports, LIMITS, read_reports(published / "report.json")).passed


def test_publishing_again_leaves_the_release_untouched(material, published):
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}
    assert publish(material, published.parent) == read_release(published)
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before
    assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_a_release_elsewhere_of_the_same_material_is_equal_byte_by_byte(material, published, tmp_path):
    assert publish(material, tmp_path) == read_release(published)


def test_another_verdict_is_another_release(material):
    strict = Limits.model_validate({"splits": {"time": {}}})
    other = Material(
        material.coefficients,
        material.reports,
        check_gate(material.reports, strict),
        material.observations,
        material.catalog,
    )
    assert release_id(other) != release_id(material)


def test_a_release_that_cannot_be_finished_leaves_nothing(material, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_blis", fail)
    with pytest.raises(OSError, match="disk full"):
        publish(material, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_that_loses_the_race_returns_the_release_that_is_there(
    material, published, tmp_path, monkeypatch
):
    write_blis = module.write_blis

    def overtaken(*arguments):
        if not (tmp_path / published.name).exists():
            shutil.copytree(published, tmp_path / published.name)
        return write_blis(*arguments)

    monkeypatch.setattr(module, "write_blis", overtaken)
    assert publish(material, tmp_path) == read_release(published)
    assert [path.name for path in tmp_path.iterdir()] == [published.name]


def test_figures_are_pictures_with_ink(published):
    for name in ("parity.png", "residuals.png", "workloads.png", "leaderboard.png"):
        picture = matplotlib.image.imread(published / name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.01


def test_no_held_out_row_draws_no_figure(material, tmp_path):
    assert draw_figures(material.held_out.slice(0, 0), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_a_report_is_written_from_a_release(published, tmp_path, suffix):
    write_report(published, tmp_path / "new" / f"report.{suffix}")
    text = (tmp_path / "new" / f"report.{suffix}").read_text()
    assert "Verdict: passed" in text
    assert "a100-sxm-80gb" in text
    assert ("base64" in text) == (suffix == "html")
    assert "1. 0.0 *" in text
    assert text.index("Folds: leave-one-gpu-out") < text.index("Leaderboard") < text.index("Coefficients of")


def test_the_leaderboard_of_a_release_is_the_one_it_was_published_with(material, published):
    assert read_leaderboard(published / "leaderboard.json") == material.leaderboard
    assert "![Leaderboard](leaderboard.png)" in (published / "report.md").read_text()


def test_a_release_without_a_leaderboard_has_no_section_of_it(material, tmp_path):
    folder = tmp_path / publish(replace(material, leaderboard=None), tmp_path).release_id
    assert not (folder / "leaderboard.json").exists()
    assert "Leaderboard" not in (folder / "report.md").read_text()


def test_the_export_of_a_release_is_what_blis_accepts(published):
    yaml = pytest.importorskip("yaml")
    check_blis(yaml.safe_load((published / "export" / "defaults.yaml").read_text()))
    assert set(json.loads((published / "export" / "hardware_config.json").read_text())) == {
        "a100-sxm-80gb",
        "h100-sxm-80gb",
    }


def test_a_check_of_physics_is_kept_in_the_release_and_told_in_its_report(material, tmp_path):
    report = check_physics(estimator_named("roofline"), material.coefficients, material.catalog, n_batches=100)
    decision = check_gate(material.reports, LIMITS, physics=report)
    release = publish(replace(material, physics=report, decision=decision), tmp_path)
    assert read_physics(tmp_path / release.release_id / "physics.json") == report
    assert "monotone_in_model_size" in (tmp_path / release.release_id / "report.md").read_text()
    write_report(tmp_path / release.release_id, tmp_path / "report.html")
    assert "monotone_in_model_size" in (tmp_path / "report.html").read_text()


def fallback_of(material):
    return Fallback(
        configuration="m on g, tp1 ep1 dp1, bfloat16",
        sentence="m on g: median E2E error 30.0 % is above the limit 10 %; its own black box has 2.0 %",
        job_ids=("a", "b"),
        estimator_e2e_pct=30.0,
        held_out_e2e_pct=2.0,
        in_sample_e2e_pct=1.5,
        coefficients=material.coefficients,
    )


def test_a_closed_loop_is_kept_in_the_release_and_told_in_its_report(material, tmp_path):
    lost = NotReplayed(job_id="z", reason="no finished request")
    loop = closed_loop_report("roofline", [replay("a", e2e=30.0), replay("b")], [lost])
    kept = replace(material, closed_loop=loop, fallbacks=(fallback_of(material),))
    folder = tmp_path / publish(kept, tmp_path).release_id
    assert read_closed_loop(folder / "closed_loop.json") == loop
    assert read_fallbacks(folder) == kept.fallbacks
    assert {"closed_loop.json", "closed_loop.png", "fallbacks.json"} <= set(read_release(folder).files)
    write_report(folder, tmp_path / "report.html")
    for text in ((folder / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "2 jobs replayed on coefficients that never saw them: median error of E2E 15.0 %" in text
        assert "z: no finished request" in text
        assert "its own black box has 2.0 %" in text
        assert text.index("Folds: leave-one-gpu-out") < text.index("Closed loop") < text.index("Coefficients of")


def test_other_fallbacks_are_another_release_and_none_leave_its_name(material):
    assert release_id(replace(material, fallbacks=(fallback_of(material),))) != release_id(material)
    assert release_id(replace(material, closed_loop=ClosedLoopReport(estimator="roofline"))) == release_id(material)


def test_a_closed_loop_that_was_not_possible_is_said_without_a_picture(material, tmp_path):
    loop = ClosedLoopReport(estimator="roofline", impossible="the observations came without tables")
    folder = tmp_path / publish(replace(material, closed_loop=loop), tmp_path).release_id
    assert "Not possible: the observations came without tables." in (folder / "report.md").read_text()
    assert not (folder / "closed_loop.png").exists()
    assert not (folder / "fallbacks.json").exists()
