import dataclasses

import numpy as np
import pytest

from srfa.coefficients import FitConfig
from srfa.page import Page, to_markdown
from srfa.request_models_page import request_models_section
from srfa.request_report import FormErrors, RequestModelReport, _verdict, request_models_report
from tests.fit.test_outside import ALPHA_US, POST_US, planted

CONFIG = FitConfig(convex_max_rows=400)


@pytest.fixture(scope="module")
def report():
    return request_models_report(planted(n=400), CONFIG)


def verdicts(report):
    return {row.model: row.verdict for row in report.rows}


def errors(report, model, form="srfa"):
    (row,) = (row for row in report.rows if row.model == model)
    (found,) = (each for each in row.forms if each.form == form)
    return found


def test_models_that_hold_are_better_than_both_yardsticks_on_held_out_jobs(report):
    found = verdicts(report)
    assert set(found) == {"alpha", "queue_wait", "alpha_token", "post"}
    assert found["queue_wait"] == found["alpha"] == found["alpha_token"] == "better"
    assert errors(report, "queue_wait").median_ape_pct < 5.0
    assert errors(report, "queue_wait").mae_us < errors(report, "queue_wait", "blackbox").mae_us / 5


def test_a_constant_that_is_as_good_is_said_to_be(report):
    """First tokens are equally far from the client, whatever the request."""
    assert verdicts(report)["post"] == "no better than a constant"


def test_a_black_box_that_is_as_good_is_said_to_be():
    """Without stalls, and with times that follow a constant and a cost a token, least squares are as good."""
    rng = np.random.default_rng(0)
    seen = planted(n=400)
    lasts = POST_US + 30.0 * seen.output_tokens + rng.normal(0.0, 20.0, 400)
    found = request_models_report(dataclasses.replace(seen, outside_us=lasts, first_outside_us=lasts), CONFIG)
    assert verdicts(found)["alpha_token"] == "no better than the blackbox form"


def test_errors_by_hand():
    """Every first token takes 100 us outside, but in the held-out job 110: 10/110 too little, whatever the form."""
    seen = planted(n=40, jobs=2)
    times = np.where(np.array(seen.job_id) == "job-0", 100.0, 110.0)
    flat = dataclasses.replace(seen, first_outside_us=times, outside_us=times)
    found = request_models_report(flat, CONFIG)
    post = errors(found, "post", "constant")
    assert post.mae_us == pytest.approx(10.0)
    assert post.bias_us == pytest.approx(0.0)
    assert post.median_ape_pct == pytest.approx(100 * (10 / 110 + 10 / 100) / 2)


def test_a_smaller_median_error_at_the_price_of_a_larger_mean_error_is_not_better():
    """The median of most waits is nothing; a model that misses the long ones is no model of waiting."""
    own, other = (
        FormErrors(form="srfa", median_ape_pct=pct, mae_us=mae, bias_us=0.0) for pct, mae in ((10, 200), (50, 100))
    )
    assert _verdict(own, other, other) == "no better than the blackbox form"
    assert _verdict(own.model_copy(update={"mae_us": 101.0}), other, other) == "better"


def test_a_job_is_never_predicted_by_itself():
    """One job's hand-over is ten times that of the others; a fit that saw it would know."""
    seen = planted(n=200, jobs=2)
    own = np.array(seen.job_id) == "job-0"
    idle = np.where(own, 10 * ALPHA_US, ALPHA_US)
    apart = dataclasses.replace(seen, arrival_to_queued_us=idle, handover_least_us=idle, clocks={})
    found = errors(request_models_report(apart, CONFIG), "alpha")
    assert found.mae_us == pytest.approx(9 * ALPHA_US, rel=0.05)


def test_with_many_jobs_several_are_held_out_together():
    found = request_models_report(planted(n=400, jobs=40), CONFIG)
    assert found.n_folds == 20
    assert {row.n_jobs for row in found.rows} == {40}


def test_one_job_or_no_clients_view_say_why_nothing_was_validated():
    found = request_models_report(planted(n=100, jobs=1), CONFIG)
    assert found == RequestModelReport(impossible="requests of 1 job(s): holding a job out needs two")
    blind = dataclasses.replace(planted(n=100), outside_us=np.full(100, np.nan), first_outside_us=np.full(100, np.nan))
    assert "post and alpha_token: 0 usable requests" in request_models_report(blind, CONFIG).impossible


def test_requests_whose_queue_was_not_recorded_are_left_out_of_every_form_and_counted(report):
    """A job of another recorder: its state at the queue is null, which no form of the wait is charged with."""
    seen = planted(n=400)
    unknown = np.array(seen.job_id) == "job-1"
    holes = dataclasses.replace(seen, waiting_at_queue=np.where(unknown, np.nan, seen.waiting_at_queue))
    found = {row.model: row for row in request_models_report(holes, CONFIG).rows}
    assert (found["queue_wait"].n_requests, found["queue_wait"].n_jobs) == (320, 4)
    assert found["queue_wait"].verdict == "better"
    assert (found["post"].n_requests, found["post"].n_jobs) == (400, 5)


def test_the_report_survives_its_file(report):
    assert RequestModelReport.model_validate_json(report.model_dump_json()) == report


def test_a_section_states_every_verdict_and_a_row_for_each_form(report):
    text = to_markdown(Page("T", (request_models_section(report),)))
    assert all(f"* {sentence}" in text for sentence in report.sentences)
    assert text.count("| blackbox |") == text.count("| constant |") == 4
    assert report.sentences[0].startswith("alpha (arrival to queued")
    assert report.sentences[0].endswith(": better")


def test_a_section_of_nothing_says_why():
    section = request_models_section(RequestModelReport(impossible="planted"))
    assert section.sentences == ("Not validated: planted.",)
    assert section.grid is None
