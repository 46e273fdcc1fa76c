import pytest

from srfa.closed_loop_report import (
    NotReplayed,
    nearest,
    read_closed_loop,
    read_closed_loop_beside,
    write_closed_loop,
)
from srfa.closed_loop_summary import closed_loop_report, noise_floor
from srfa.errors import InputError
from tests.replays import replay


def test_the_headline_counts_each_job_once_on_the_fold_with_the_most_steps():
    replays = [
        replay("a", split="leave-one-gpu-out", n_train_steps=10, e2e=50.0),
        replay("a", split="leave-one-workload-out", n_train_steps=20, e2e=-4.0),
        replay("b", split="leave-one-gpu-out", n_train_steps=10, e2e=8.0),
    ]
    report = closed_loop_report("srfa", replays)
    assert [(one.job_id, one.split) for one in nearest(replays)] == [
        ("a", "leave-one-workload-out"),
        ("b", "leave-one-gpu-out"),
    ]
    assert report.headline.n_jobs == 2
    assert report.headline.metrics["e2e"].median_pct == pytest.approx(6.0)
    assert report.headline.metrics["e2e"].bias_pct == pytest.approx(2.0)
    by_split = {summary.split: summary.median_pct("e2e") for summary in report.splits}
    assert by_split == pytest.approx({"leave-one-gpu-out": 29.0, "leave-one-workload-out": 4.0})


def test_errors_of_opposite_sign_cancel_in_the_bias_and_not_in_the_median():
    found = closed_loop_report("srfa", [replay("a", e2e=20.0), replay("b", e2e=-20.0)]).headline.metrics["e2e"]
    assert (found.median_pct, found.bias_pct) == pytest.approx((20.0, 0.0))


def test_a_job_that_the_coefficients_saw_is_shown_and_not_counted():
    report = closed_loop_report("srfa", [replay("a", e2e=5.0), replay("b", e2e=0.0, seen=True)])
    assert report.headline.n_jobs == 1
    assert report.headline.median_pct("e2e") == pytest.approx(5.0)
    assert len(report.replays) == 2
    assert closed_loop_report("srfa", [replay("b", seen=True)]).headline is None


def test_a_metric_counts_the_jobs_that_have_it():
    replays = [replay("a", e2e=5.0), replay("b", e2e=5.0, without=("tpot",))]
    headline = closed_loop_report("srfa", replays).headline
    assert (headline.metrics["e2e"].n_jobs, headline.metrics["tpot"].n_jobs) == (2, 1)


def test_a_job_is_lost_only_where_no_split_replayed_it():
    not_replayed = [
        NotReplayed(job_id="a", split="time", reason="first"),
        NotReplayed(job_id="b", split="time", reason="first"),
        NotReplayed(job_id="b", split="leave-one-gpu-out", reason="second"),
    ]
    report = closed_loop_report("srfa", [replay("a")], not_replayed)
    assert [(one.job_id, one.reason) for one in report.lost] == [("b", "first")]


def test_the_noise_floor_is_a_repeat_as_the_prediction_of_another():
    noise = noise_floor([("one", {"e2e": 100.0}), ("one", {"e2e": 110.0}), ("alone", {"e2e": 1.0})])
    assert (noise.n_cells, noise.n_jobs) == (1, 2)
    assert noise.spread_pct["e2e"] == pytest.approx((10.0 + 100 * (1 - 100 / 110)) / 2)
    assert "ttft" not in noise.spread_pct


def test_without_repeats_there_is_no_noise_floor():
    assert noise_floor([("one", {"e2e": 1.0}), ("other", {"e2e": 2.0})]) is None


def test_what_is_written_is_read_again(tmp_path):
    report = closed_loop_report("srfa", [replay("a")], [NotReplayed(job_id="b", reason="r")])
    write_closed_loop(report, tmp_path / "closed_loop.json")
    assert read_closed_loop(tmp_path / "closed_loop.json") == report
    assert read_closed_loop_beside(tmp_path / "report.json") == report
    assert read_closed_loop_beside(tmp_path / "elsewhere" / "report.json") is None


def test_a_file_of_another_form_is_refused_by_name(tmp_path):
    (tmp_path / "closed_loop.json").write_text('{"estimator": "srfa", "further": 1}')
    with pytest.raises(InputError, match=r"closed_loop\.json: further"):
        read_closed_loop(tmp_path / "closed_loop.json")
