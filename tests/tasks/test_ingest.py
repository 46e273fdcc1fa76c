"""A run in the store becomes tables and observations, and bad data fails its own job only."""

import pytest

from srfa.errors import DataInvalidError, NothingMeasuredError
from srfa.specs import JobOutcome
from tasks.evidence import write_failure
from tasks.ingest import (
    ingest_stored_job,
    measured_catalog,
    observations_key,
    stored_observations,
    stored_run,
    stored_tables,
    table_key,
)
from tasks.stages import ingest_run, load_run
from tasks.store import open_store
from tests.flows.recorded import jobs, record_job, record_run, with_probe, write_inputs
from tests.steps import catalog


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def store(uri):
    return open_store(uri)


@pytest.fixture
def some_jobs(tmp_path):
    return jobs(write_inputs(tmp_path) / "matrix.yaml")[:3]


def test_a_run_is_read_back_from_its_manifests(uri, store, some_jobs):
    record_run(uri, "r1", some_jobs)
    found = stored_run(store, "r1")
    assert {data.job for data in found} == set(some_jobs)
    assert {data.outcome.status for data in found} == {"measured"}


def test_a_failure_counts_until_a_manifest_is_there(uri, store, some_jobs):
    job = some_jobs[0]
    failed = JobOutcome(
        job_id=job.job_id,
        group_id=job.group_id,
        prefix=f"traces/run_id=r1/job_id={job.job_id}",
        status="failed",
        reason="engine_died",
    )
    write_failure(store, failed, {})
    assert [data.outcome.reason for data in stored_run(store, "r1")] == ["engine_died"]
    record_job(uri, "r1", job)
    assert [data.outcome.status for data in stored_run(store, "r1")] == ["measured"]


def test_a_run_that_is_not_there_has_measured_nothing(store):
    with pytest.raises(NothingMeasuredError, match="no job of run 'r9'"):
        stored_run(store, "r9")


def test_tables_and_observations_lie_where_the_layout_says(uri, store, some_jobs):
    record_run(uri, "r1", some_jobs)
    found, _ = ingest_run.fn(store, "r1", stored_run(store, "r1"), catalog())
    assert all(data.tokens_conserved for data in found)
    assert all("data gates passed" in data.gates for data in found)
    for job in some_jobs:
        for table in ("jobs", "steps", "requests"):
            assert store.exists(table_key(table, "r1", job.job_id))
    assert store.exists("observations/run_id=r1/observations.parquet")
    assert stored_observations(store, "r1").n_steps == sum(data.n_observations for data in found)


def test_torn_data_fails_its_own_job_and_leaves_the_others(uri, store, some_jobs):
    record_job(uri, "r1", some_jobs[0], torn=True)
    record_run(uri, "r1", some_jobs[1:])
    found, measured = ingest_run.fn(store, "r1", stored_run(store, "r1"), catalog())
    by_id = {data.outcome.job_id: data for data in found}
    torn = by_id.pop(some_jobs[0].job_id)
    assert (torn.outcome.status, torn.outcome.reason) == ("failed", "data_gate")
    assert "trace.jsonl.gz" in torn.outcome.message
    assert {data.outcome.status for data in by_id.values()} == {"measured"}
    dataset = load_run.fn(store, "r1", found, measured)
    assert set(dataset.observations.job_ids) == set(by_id)
    assert dataset.data_sha256.keys() == {observations_key("r1")}


def test_a_label_faster_than_light_fails_the_job(uri, store, some_jobs):
    outcome = record_job(uri, "r1", some_jobs[0])
    with_probe(uri, outcome, bf16_tflops=1e-6, memory_bandwidth_tbps=1e-6)
    (data,) = stored_run(store, "r1")
    checked, ingested = ingest_stored_job(store, data, measured_catalog(store, [data], catalog()), "r1")
    assert ingested is None
    assert checked.outcome.reason == "data_gate"
    assert "speed_of_light" in checked.outcome.message


def test_profiles_take_the_median_of_what_was_measured(uri, store, some_jobs):
    same = [job for job in some_jobs if job.gpu == some_jobs[0].gpu][:2]
    for job, rate in zip(same, (0.1, 0.3), strict=True):
        with_probe(uri, record_job(uri, "r1", job), bf16_tflops=rate, memory_bandwidth_tbps=0.02)
    shipped = catalog()
    sheet = measured_catalog(store, stored_run(store, "r1"), shipped).resolve_gpu(same[0].gpu).datasheet
    assert sheet.bf16_tflops == pytest.approx(0.2)
    assert sheet.memory_bandwidth_tbps == pytest.approx(0.02)
    assert sheet.source.startswith("median of 2 probe(s)")
    assert sheet.memory_gib == shipped.resolve_gpu(same[0].gpu).datasheet.memory_gib


def test_a_probe_without_its_figure_is_refused(uri, store, some_jobs):
    with_probe(uri, record_job(uri, "r1", some_jobs[0]), bf16_tflops=0.1)
    with pytest.raises(DataInvalidError, match="memory_bandwidth_tbps"):
        measured_catalog(store, stored_run(store, "r1"), catalog())


def test_tables_of_several_jobs_are_joined_in_the_order_asked_for(uri, store, some_jobs):
    record_run(uri, "r1", some_jobs)
    ingest_run.fn(store, "r1", stored_run(store, "r1"), catalog())
    ids = [job.job_id for job in reversed(some_jobs)]
    assert stored_tables(store, "jobs", "r1", ids)["job_id"].to_pylist() == ids
