"""Every job is told once, as soon as the store has it, with its place among all."""

import logging
import time

import pytest

from srfa.errors import StoreError
from srfa.specs import EngineGroup
from tasks.group import failed_outcome
from tasks.progress import JobBoard, job_name, run_log, server_text, watched
from tasks.store import open_store
from tests.flows.recorded import jobs, record_job, record_run, write_inputs


@pytest.fixture
def some_jobs(tmp_path):
    return jobs(write_inputs(tmp_path) / "matrix.yaml")[:3]


@pytest.fixture
def board(some_jobs, caplog):
    caplog.set_level(logging.INFO, logger="srfa")
    return JobBoard(some_jobs, logging.getLogger("srfa"))


def told(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_outside_a_flow_run_lines_go_to_the_log_called_srfa():
    assert run_log() is logging.getLogger("srfa")


def test_a_job_is_told_once_however_often_it_is_seen(board, some_jobs, tmp_path, caplog):
    outcome = record_job(str(tmp_path / "s"), "r1", some_jobs[0])
    board.tell([outcome])
    board.tell([outcome])
    (line,) = told(caplog, "job 1 of 3")
    assert job_name(some_jobs[0]) in line
    assert f"{outcome.n_steps} steps" in line


def test_a_failed_job_is_a_warning_with_its_reason(board, some_jobs, caplog):
    board.tell([failed_outcome(some_jobs[1], "r1", "engine_died", "out of memory")])
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "failed (engine_died): out of memory" in record.getMessage()


def test_a_server_is_told_once_for_all_its_jobs(board, some_jobs, tmp_path, caplog):
    record_run(str(tmp_path / "s"), "r1", some_jobs)
    groups = {job.group_id for job in some_jobs}
    assert len(groups) < len(some_jobs)
    board.tell([record_job(str(tmp_path / "s2"), "r1", job) for job in some_jobs])
    assert len(told(caplog, "server was ready after 2 s")) == len(groups)


def test_jobs_of_another_run_are_passed_over(board, tmp_path, caplog):
    other = jobs(write_inputs(tmp_path) / "matrix.yaml")[-1]
    board.tell([record_job(str(tmp_path / "s"), "r1", other)])
    assert not told(caplog, "job 1")


def test_a_group_says_where_it_will_run(board, some_jobs, caplog):
    job = some_jobs[0]
    board.start(EngineGroup(group_id=job.group_id, jobs=(job,)))
    assert told(caplog, f"group {job.group_id}: {job.model} on {job.gpu}, 1 job(s)")


def test_the_watch_tells_what_appears_in_the_store(board, some_jobs, tmp_path, caplog):
    uri = str(tmp_path / "s")
    with watched(open_store(uri), "r1", board, poll_s=0.01):
        record_job(uri, "r1", some_jobs[0])
        _until(lambda: told(caplog, "job 1 of 3"))
        record_job(uri, "r1", some_jobs[1])
        _until(lambda: told(caplog, "job 2 of 3"))


def test_a_store_that_does_not_answer_does_not_end_the_watch(board, some_jobs, tmp_path, caplog):
    store = open_store(str(tmp_path / "s"))
    answers = iter([StoreError("planted"), None])
    listed = store.list

    def flaky(prefix):
        if error := next(answers, None):
            raise error
        return listed(prefix)

    store.list = flaky
    with watched(store, "r1", board, poll_s=0.01):
        record_job(str(tmp_path / "s"), "r1", some_jobs[0])
        _until(lambda: told(caplog, "job 1 of 3"))


def test_names_say_what_sets_a_server_apart(some_jobs):
    job = some_jobs[0]
    assert server_text(job) == ""
    wide = job.model_copy(
        update={"engine": job.engine.model_copy(update={"tensor_parallel_size": 4, "cpu_offload_gb": 8})}
    )
    assert server_text(wide) == "TP4 offload 8 GB"
    assert job_name(wide).startswith(f"{wide.job_id} {job.model} on {job.gpu} TP4")


def _until(reached, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline, "never reached"
        time.sleep(0.01)
