"""How a run ended, as an exit code: the verdict comes before missing jobs."""

import pytest

from srfa.errors import GateFailed, IncompleteError, NothingMeasuredError
from tasks.group import failed_outcome
from tasks.ingest import JobData
from tasks.store import open_store
from tasks.summary import (
    JOB_HEADS,
    RunSummary,
    concluded,
    job_rows,
    read_summary,
    require_measured,
    store_summary,
)
from tests.flows.recorded import jobs, record_job, write_inputs


@pytest.fixture
def good(tmp_path):
    job = jobs(write_inputs(tmp_path) / "matrix.yaml")[0]
    return JobData(outcome=record_job(str(tmp_path / "s"), "r1", job), job=job, tokens_conserved=True, n_observations=9)


@pytest.fixture
def bad(tmp_path):
    job = jobs(write_inputs(tmp_path) / "matrix.yaml")[1]
    return JobData(outcome=failed_outcome(job, "r1", "engine_died", "out of memory"), job=job)


def summary(*data, **fields):
    return RunSummary(store_uri="file:///s", run_id="r1", jobs=data, **fields)


def test_a_run_in_which_all_is_well_is_returned(good):
    well = summary(good, passed=True, release_id="abc")
    assert concluded(well) is well


def test_a_no_ends_with_1_and_names_every_broken_rule(good, bad):
    with pytest.raises(GateFailed, match=r"abc(.|\n)*MAPE 70(.|\n)*bias 9") as caught:
        concluded(summary(good, bad, passed=False, release_id="abc", broken=("MAPE 70 %", "bias 9 %")))
    assert caught.value.exit_code == 1


def test_missing_jobs_end_with_3_where_the_verdict_is_yes(good, bad):
    with pytest.raises(
        IncompleteError, match=r"1 of 2 jobs failed: 1 x engine_died; the first: out of memory"
    ) as caught:
        concluded(summary(good, bad, passed=True))
    assert caught.value.exit_code == 3


def test_no_measured_job_at_all_ends_with_4_and_says_why(bad):
    with pytest.raises(NothingMeasuredError, match=r"none of 2 jobs .* 2 x engine_died") as caught:
        require_measured((bad, bad))
    assert caught.value.exit_code == 4


def test_one_measured_job_is_something(good, bad):
    require_measured((bad, good))


def test_rows_have_the_failed_jobs_first_and_say_whether_tokens_are_conserved(good, bad):
    rows = [dict(zip(JOB_HEADS, row, strict=True)) for row in job_rows((good, bad))]
    assert [row["status"] for row in rows] == ["failed", "measured"]
    assert (rows[0]["reason"], rows[0]["message"]) == ("engine_died", "out of memory")
    assert [row["tokens conserved"] for row in rows] == ["-", "yes"]


def test_a_stored_summary_is_read_back(good, bad, tmp_path):
    store = open_store(str(tmp_path / "s"))
    store_summary(store, kept := summary(good, bad, passed=False, broken=("x",)))
    assert read_summary(store, "r1") == kept
