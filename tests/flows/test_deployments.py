"""The deployments on a real Prefect server and worker; what the engine would have measured is recorded."""

import hashlib
import sys
from pathlib import Path

import pytest

from tasks.publish import LATEST_KEY
from tasks.store import open_store
from tests.flows.recorded import jobs, record_job, record_run

pytestmark = [pytest.mark.prefect, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store_folder(inputs, tmp_path_factory):
    """A store with the traces of run ``r1``, of ``r2`` in which one job's trace is torn, of ``r3`` in which all are."""
    folder = tmp_path_factory.mktemp("store")
    every = jobs(inputs / "matrix.yaml")
    record_run(str(folder), "r1", every)
    record_run(str(folder), "r2", every[1:])
    record_job(str(folder), "r2", every[0], torn=True)
    for job in every:
        record_job(str(folder), "r3", job, torn=True)
    return folder


@pytest.fixture(scope="module")
def passed(deployed, store_folder, inputs):
    """The first run: it passes."""
    return _run(deployed, store_folder, inputs, limits="wide.yaml")


@pytest.fixture(scope="module")
def failed(passed, deployed, store_folder, inputs):
    """The second run, of the same traces under limits that nothing meets."""
    before = _tree(store_folder)
    return *_run(deployed, store_folder, inputs, limits="narrow.yaml", estimator="roofline"), before


def _run(server, store_folder, inputs, *, limits, run_id="r1", estimator="srfa"):
    finished = server.deployment_run(
        matrix=str(inputs / "matrix.yaml"),
        limits=str(inputs / limits),
        store=str(store_folder),
        run_id=run_id,
        resume=True,
        estimator=estimator,
    )
    return finished, server.last_run()


def _tree(folder: Path):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_both_deployments_are_registered_and_the_nightly_one_has_its_clock(deployed):
    found = {one["name"]: one for one in deployed.post("/deployments/filter")}
    assert set(found) == {"collect-and-train", "nightly"}
    (schedule,) = found["nightly"]["schedules"]
    assert schedule["schedule"]["cron"] == "0 1 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert found["nightly"]["parameters"] == {"matrix": "matrix.yaml", "limits": "gate.yaml"}
    assert not found["collect-and-train"]["schedules"]


def test_the_run_form_describes_every_parameter(deployed):
    (found,) = [one for one in deployed.post("/deployments/filter") if one["name"] == "collect-and-train"]
    parameters = found["parameter_openapi_schema"]["properties"]
    assert all(parameter.get("description") for parameter in parameters.values())
    assert all("default" in parameter for parameter in parameters.values())


def test_a_run_that_passes_exits_with_0_and_moves_the_pointer(passed, store_folder):
    finished, run = passed
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert run["state_type"] == "COMPLETED"
    assert open_store(str(store_folder)).exists(LATEST_KEY)


def test_progress_of_every_job_is_in_the_log(passed, deployed, inputs):
    lines = deployed.log(passed[1])
    for job in jobs(inputs / "matrix.yaml"):
        assert any(f"{job.job_id} {job.model}" in line and "steps" in line for line in lines)
    assert any("job 8 of 8" in line for line in lines)


def test_artifacts_show_jobs_folds_and_the_report(passed, deployed):
    artifacts = deployed.artifacts(passed[1])
    assert artifacts.keys() == {"jobs", "folds", "report"}
    assert artifacts["jobs"].count("measured") == 8
    assert "leave-one-gpu-out" in artifacts["folds"]
    assert "Verdict: passed" in artifacts["report"]


def test_a_run_whose_gate_fails_exits_with_1_and_says_why(failed):
    finished, run, _ = failed
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert run["state_type"] == "FAILED"
    assert "GateFailed" in run["state"]["message"]


def test_artifacts_are_there_after_a_failed_gate(failed, deployed):
    artifacts = deployed.artifacts(failed[1])
    assert artifacts.keys() == {"jobs", "folds", "report"}
    assert "Verdict: failed" in artifacts["report"]


def test_a_failed_gate_leaves_earlier_results_untouched(failed, store_folder):
    now, before = _tree(store_folder), failed[2]
    changed = {key for key in before if now.get(key) != before[key]}
    assert changed <= {"traces/run_id=r1/summary.json"}
    assert LATEST_KEY in before


def test_a_failed_job_takes_no_other_with_it_and_ends_the_command_with_3(deployed, store_folder, inputs):
    finished = deployed.run(
        sys.executable,
        *("-m", "flows.collect_and_train", "--matrix", str(inputs / "matrix.yaml"), "--run-id", "r2", "--resume"),
        *("--limits", str(inputs / "wide.yaml"), "--store", str(store_folder), "--estimator", "roofline"),
    )
    assert finished.returncode == 3, finished.stdout + finished.stderr
    assert "7 of 8 jobs measured" in finished.stdout
    assert "data_gate" in finished.stdout
    assert "verdict: passed" in finished.stdout
    assert "1 of 8 jobs failed" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_command_ends_with_1_where_the_gate_says_no(deployed, store_folder, inputs):
    finished = deployed.run(
        sys.executable,
        *("-m", "flows.collect_and_train", "--matrix", str(inputs / "matrix.yaml"), "--run-id", "r2", "--resume"),
        *("--limits", str(inputs / "narrow.yaml"), "--store", str(store_folder), "--estimator", "roofline"),
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "verdict: failed" in finished.stdout
    assert "tokens conserved in 7 of 7 jobs" in finished.stdout


def test_train_alone_makes_the_release_the_whole_flow_made(passed, deployed, store_folder, inputs):
    store = open_store(str(store_folder))
    releases = set(store.list("releases/"))
    finished = deployed.run(
        sys.executable,
        *("-m", "flows.train", "--run-id", "r1", "--store", str(store_folder), "--limits", str(inputs / "wide.yaml")),
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "verdict: passed" in finished.stdout
    assert set(store.list("releases/")) == releases


def test_train_takes_observation_files_from_anywhere(passed, deployed, store_folder, inputs, tmp_path):
    observations = store_folder / "observations" / "run_id=r1" / "observations.parquet"
    finished = deployed.run(
        sys.executable,
        *("-m", "flows.train", str(observations), "--store", str(tmp_path), "--limits", str(inputs / "wide.yaml")),
        *("--estimator", "roofline"),
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "roofline, leave-one-gpu-out" in finished.stdout


def test_gate_alone_judges_a_kept_report(passed, deployed, store_folder, inputs):
    report = next(store_folder.glob("releases/*/report.json"))
    limits = str(inputs / "narrow.yaml")
    finished = deployed.run(sys.executable, "-m", "flows.gate", str(report), "--limits", limits)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert deployed.artifacts(deployed.last_run()).keys() == {"verdict"}


def test_nothing_usable_ends_with_4_and_still_shows_every_job(deployed, store_folder, inputs):
    finished = deployed.run(
        sys.executable,
        *("-m", "flows.collect", "--matrix", str(inputs / "matrix.yaml"), "--run-id", "r3", "--resume"),
        *("--store", str(store_folder)),
    )
    assert finished.returncode == 4, finished.stdout + finished.stderr
    assert "0 of 8 jobs measured" in finished.stdout
    assert "none of 8 jobs left a usable step: 8 x data_gate" in finished.stderr
    assert deployed.artifacts(deployed.last_run())["jobs"].count("data_gate") == 8
