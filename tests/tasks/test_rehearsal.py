"""What simulates a campaign is read and refused before it starts, and travels as a document."""

import pytest
from pydantic import ValidationError

from srfa.coefficients import Coefficients, FitConfig, Provenance, write_coefficients
from srfa.errors import CoefficientsError, UsageError
from tasks.rehearsal import Rehearsal, RehearsalSettings, remarks


@pytest.fixture
def file(tmp_path):
    """Coefficients of the black box."""
    path = tmp_path / "c.json"
    fitted = Coefficients(estimator="blackbox", blocks={}, converged=True, message="", config=FitConfig())
    write_coefficients(fitted, path)
    return path


def test_the_file_becomes_part_of_the_document_and_the_rest_stays(file):
    settings = RehearsalSettings(coefficients=file, step_noise=0.05, slow_steps=0.01, noise_seed=7)
    read = settings.read()
    assert read.coefficients.estimator == "blackbox"
    assert (read.latency_mode, read.step_noise, read.slow_steps, read.noise_seed) == (None, 0.05, 0.01, 7)
    assert Rehearsal.model_validate_json(read.model_dump_json()) == read
    assert RehearsalSettings.model_validate_json(settings.model_dump_json()) == settings


def test_the_roofline_needs_no_coefficients_and_may_have_some(file):
    assert RehearsalSettings(latency_mode="roofline").read().coefficients is None
    assert RehearsalSettings(latency_mode="roofline", coefficients=file).read().latency_mode == "roofline"


@pytest.mark.parametrize(
    ("mode", "says"),
    [(None, "needs coefficients"), ("srfa", "srfa needs coefficients"), ("rooflin", "rooflin needs coefficients")],
)
def test_a_clock_that_needs_coefficients_has_them(mode, says):
    with pytest.raises(UsageError, match=says):
        RehearsalSettings(latency_mode=mode).read()


def test_coefficients_of_another_estimator_are_refused(file, tmp_path):
    with pytest.raises(UsageError, match="coefficients of blackbox cannot serve srfa"):
        RehearsalSettings(latency_mode="srfa", coefficients=file).read()
    with pytest.raises(CoefficientsError, match=r"missing\.json"):
        RehearsalSettings(coefficients=tmp_path / "missing.json").read()


@pytest.mark.parametrize("wrong", [{"step_noise": -0.1}, {"slow_steps": 1.5}, {"noise_seed": -1}, {"noise": 0.1}])
def test_a_figure_that_is_no_noise_is_refused(wrong):
    with pytest.raises(ValidationError):
        RehearsalSettings(latency_mode="roofline", **wrong)


def test_a_run_says_that_it_is_a_rehearsal_and_what_its_fit_knew_beyond_the_catalogue(file):
    read = RehearsalSettings(coefficients=file).read()
    calibrated = Provenance(transfer="calibrated", transfer_sha256={"h100.json": "0" * 64})
    fitted = read.coefficients.model_copy(update={"provenance": calibrated})
    assert remarks(None) == ()
    assert remarks(read) == remarks(Rehearsal(latency_mode="roofline"))
    assert "engines are simulated" in remarks(read)[0]
    assert "h100.json" in remarks(read.model_copy(update={"coefficients": fitted}))[1]
