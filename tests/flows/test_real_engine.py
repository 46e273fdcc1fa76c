"""The whole path on real parts: Prefect server and worker, local Ray, vLLM on two profiles of this CPU."""

import pytest

from tasks.ingest import stored_observations
from tasks.store import open_store
from tasks.summary import read_summary

pytestmark = [pytest.mark.prefect, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1800)]

MATRIX = """
name: smallest
defaults:
  engine:
    {load_format: dummy, enforce_eager: true, dtype: float32, kv_cache_memory_bytes: 134217728, max_model_len: 1024,
     max_num_seqs: 16, max_num_batched_tokens: 128, block_size: 32}
workloads:
  mixed: {random_input_len: 192, random_output_len: 12, random_range_ratio: 0.8, num_prompts: 12, max_concurrency: 4}
axes:
  models: [srfa/tiny-dense]
  gpus: [cpu-1t, cpu-1t-lite]
"""


@pytest.fixture(scope="module")
def measured(deployed, inputs, tmp_path_factory):
    """One real run, and what the command that started it said."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "matrix.yaml").write_text(MATRIX)
    (folder / "wide.yaml").write_text(
        "splits: {leave-one-gpu-out: {max_mape_pct: 100000}}\nphysics: {required: false}\n"
    )
    parameters = {"matrix": str(folder / "matrix.yaml"), "store": str(folder / "store"), "run_id": "real"}
    finished = deployed.deployment_run(1500, limits=str(folder / "wide.yaml"), **parameters)
    return finished, open_store(str(folder / "store")), parameters


def test_a_real_run_passes_and_exits_with_0(measured):
    finished, store, _ = measured
    assert finished.returncode == 0, finished.stdout + finished.stderr
    summary = read_summary(store, "real")
    assert [data.outcome.status for data in summary.jobs] == ["measured", "measured"]
    assert summary.passed
    assert summary.latest


def test_tokens_are_conserved_in_every_real_job(measured):
    assert all(data.tokens_conserved for data in read_summary(measured[1], "real").jobs)


def test_real_steps_are_labelled_by_cpu_time_on_both_profiles(measured):
    observations = stored_observations(measured[1], "real")
    assert set(observations.strings("step_time_method")) == {"cpu_time"}
    assert set(observations.strings("gpu")) == {"cpu-1t", "cpu-1t-lite"}
    assert (observations.step_time_us > 0).all()
    assert observations.numbers("prefill_tokens").max() == 128


def test_a_release_carries_the_figures_its_profiles_had_here(measured):
    _, store, _ = measured
    release = read_summary(store, "real").release_id
    for profile in ("cpu-1t", "cpu-1t-lite"):
        assert b"probe(s) on the machine that measured" in store.get(f"releases/{release}/hardware/{profile}.json")


def test_going_on_with_a_real_run_starts_no_engine_and_a_narrow_gate_exits_with_1(measured, deployed, inputs):
    _, store, parameters = measured
    traces = {key: store.version(key) for key in store.list("traces/") if not key.endswith("summary.json")}
    finished = deployed.deployment_run(600, limits=str(inputs / "narrow.yaml"), resume=True, **parameters)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert {key: store.version(key) for key in store.list("traces/") if not key.endswith("summary.json")} == traces
    assert deployed.artifacts(deployed.last_run()).keys() == {"jobs", "folds", "report"}
