"""A campaign whose engines are simulated, from the shell to the release, on a real Prefect server and a local Ray."""

import sys

import pytest

from tasks.publish import LATEST_KEY
from tasks.store import open_store
from tasks.summary import read_summary

pytestmark = [pytest.mark.prefect, pytest.mark.ray, pytest.mark.timeout(900)]

MATRIX = """
name: rehearsed
defaults:
  engine: {max_model_len: 2048, max_num_batched_tokens: 512}
workloads:
  prompts: {random_input_len: 900, random_output_len: 4, random_range_ratio: 0.6, num_prompts: 24, max_concurrency: 4}
  answers: {random_input_len: 60, random_output_len: 60, random_range_ratio: 0.6, num_prompts: 24, max_concurrency: 8}
  chat: {dataset_name: sharegpt, dataset_path: nowhere.json, num_prompts: 8}
axes:
  models: [Qwen/Qwen3-8B]
  gpus: [a100-sxm-80gb, h100-sxm-80gb]
"""
LIMITS = """
splits: {leave-one-gpu-out: {max_mape_pct: 100000}, leave-one-workload-out: {max_mape_pct: 100000}}
physics: {required: false}
"""
NOISE = ("--latency-mode", "roofline", "--step-noise", "0.05", "--slow-steps", "0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("rehearsed")
    (place / "chat.yaml").write_text(MATRIX)
    (place / "matrix.yaml").write_text(MATRIX + "  workloads: [prompts, answers]\n")
    (place / "limits.yaml").write_text(LIMITS)
    return place


@pytest.fixture(scope="module")
def run(prefect_server, folder):
    """Run a flow by its module; matrix and limits are those of the folder."""

    def started(flow, *options):
        return prefect_server.run(sys.executable, "-m", f"flows.{flow}", "--store", str(folder / "store"), *options)

    return started


@pytest.fixture(scope="module")
def rehearsed(run, folder):
    given = ("--matrix", str(folder / "matrix.yaml"), "--limits", str(folder / "limits.yaml"))
    return run("collect_and_train", *given, "--estimator", "lacm", "--run-id", "rehearsal-one", *NOISE)


def test_a_rehearsal_goes_from_the_matrix_to_a_release_that_is_not_the_latest(rehearsed, folder):
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    assert "4 of 4 jobs rehearsed (simulated engines)" in rehearsed.stdout
    assert "tokens conserved in 4 of 4 jobs" in rehearsed.stdout
    assert "verdict: passed; it is a rehearsal, which is never the latest" in rehearsed.stdout
    store = open_store(str(folder / "store"))
    summary = read_summary(store, "rehearsal-one")
    assert (summary.passed, summary.latest, summary.simulated) == (True, False, True)
    assert b"+simulated" in store.get(f"releases/{summary.release_id}/verdict.json")
    assert not store.exists(LATEST_KEY)


def test_training_alone_on_a_rehearsal_moves_no_pointer_either(rehearsed, run, folder):
    ended = run("train", "--run-id", "rehearsal-one", "--limits", str(folder / "limits.yaml"), "--estimator", "lacm")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "it is a rehearsal" in ended.stdout
    assert not open_store(str(folder / "store")).exists(LATEST_KEY)


def test_going_on_with_a_rehearsal_simulates_nothing_again_and_a_measurement_cannot(rehearsed, run, folder):
    store = open_store(str(folder / "store"))
    traces = {key: store.version(key) for key in store.list("traces/") if not key.endswith("summary.json")}
    going_on = ("--matrix", str(folder / "matrix.yaml"), "--run-id", "rehearsal-one", "--resume")
    ended = run("collect", *going_on, *NOISE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {key: store.version(key) for key in store.list("traces/") if not key.endswith("summary.json")} == traces
    assert run("collect", *going_on).returncode == 2


def test_jobs_that_cannot_be_rehearsed_fail_with_their_reason_and_the_others_go_on(run, folder):
    ended = run("collect", "--matrix", str(folder / "chat.yaml"), "--run-id", "rehearsal-chat", *NOISE)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "4 of 6 jobs rehearsed" in ended.stdout
    assert "2 of 6 jobs failed: 2 x not_simulated" in ended.stderr
