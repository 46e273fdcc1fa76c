import matplotlib.image
import pytest

from srfa.closed_loop_figure import draw_closed_loop
from srfa.closed_loop_page import closed_loop_sections, headline, job_rows, loop_sentence, noise_sentence
from srfa.closed_loop_report import ClosedLoopReport, NotReplayed
from srfa.closed_loop_summary import closed_loop_report, noise_floor
from srfa.page import Page, to_markdown
from srfa.request_times import pair_of
from tests.replays import replay


def text(report, **further):
    return to_markdown(Page("P", closed_loop_sections(report, **further)))


def test_the_headline_says_how_many_jobs_and_each_median_with_its_bias():
    report = closed_loop_report("srfa", [replay("a", e2e=10.0, ttft=-4.0), replay("b", e2e=-20.0, ttft=-6.0)])
    assert headline(report) == (
        "2 jobs replayed on coefficients that never saw them: median error of E2E 15.0 % (bias -5.0 %),"
        " TTFT 5.0 % (bias -5.0 %), TPOT 0.0 % (bias +0.0 %)."
    )


def test_what_step_time_and_host_explain_is_not_the_loops_own_error():
    slow = replay("a", e2e=50.0, step_time_us=pair_of(10.0, 12.0), wall_ratio=pair_of(1.0, 1.25))
    own = replay("b", e2e=10.0, step_time_us=pair_of(10.0, 10.0))
    assert (slow.loop_pct, own.loop_pct) == pytest.approx((0.0, 10.0))
    assert "the median error of E2E is 5.0 %" in loop_sentence(closed_loop_report("srfa", [slow, own]))
    assert loop_sentence(closed_loop_report("srfa", [replay("a", step_time_us=None)])) == ""


def test_the_worst_job_comes_first_and_the_seen_ones_last():
    replays = [replay("seen", e2e=99.0, seen=True), replay("fine", e2e=1.0), replay("worst", e2e=-30.0)]
    rows = job_rows(closed_loop_report("srfa", replays))
    assert [row[0] for row in rows] == ["worst", "fine", "seen"]
    assert rows[0][6] == "1000 -> 700 (-30.0 %)"
    assert rows[2][2] == "SEEN by the fit"


def test_what_was_not_replayed_is_told_with_its_reason():
    lost = NotReplayed(job_id="z", split="time", place="m on g", reason="no finished request")
    report = closed_loop_report("srfa", [replay("a")], [lost])
    assert "1 could not be replayed" in headline(report)
    assert "not replayed: z (m on g): time: no finished request" in text(report)


def test_a_closed_loop_that_is_not_possible_says_why():
    report = ClosedLoopReport(estimator="srfa", impossible="the observations came without tables")
    assert "Not possible: the observations came without tables." in text(report)


def test_the_noise_floor_is_said_or_said_to_be_unknown():
    jobs = [("cell", {"e2e": 100.0}), ("cell", {"e2e": 110.0})]
    assert "E2E 9.5 %" in noise_sentence(closed_loop_report("srfa", [replay()], noise=noise_floor(jobs)))
    assert "not known" in noise_sentence(closed_loop_report("srfa", [replay()]))


def test_replays_without_models_of_what_lies_outside_the_steps_are_told():
    report = closed_loop_report("srfa", [replay("a", without_outside="no other job")])
    assert "a: replayed without what lies outside the steps: no other job" in text(report)


@pytest.mark.parametrize(
    "replays", [[replay("a", e2e=10.0), replay("b", configuration="other")], [replay("a", seen=True)]]
)
def test_the_figure_is_a_picture_with_ink(replays, tmp_path):
    draw_closed_loop(closed_loop_report("srfa", replays), tmp_path / "closed_loop.png")
    picture = matplotlib.image.imread(tmp_path / "closed_loop.png")
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.01
