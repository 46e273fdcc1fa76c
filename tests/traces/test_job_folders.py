import gzip
import json

import pyarrow.parquet as pq
import pytest

from srfa.cli import main
from srfa.errors import DataInvalidError
from srfa.job_folders import find_job_folders, measured_catalog
from tests.steps import ROOT, catalog


@pytest.fixture
def measured_run(tmp_path, toy, make_job):
    """Write a run of two jobs as collection leaves it and return its folder."""
    run = tmp_path / "traces" / "run_id=r1"
    for seed in (0, 1):
        job = make_job(num_prompts=4).model_copy(update={"gpu": "cpu-1t", "model": "srfa/tiny-dense", "seed": seed})
        folder = run / f"job_id={job.job_id}"
        folder.mkdir(parents=True)
        files = toy([(40, 6)] * 4, every_ns=60_000_000, step_ns=200_000_000).files(job)
        manifest = {"run_id": "r1", "job_id": job.job_id, "job": job.model_dump(mode="json"), "more": 1}
        for name, content in (files | {"manifest.json": json.dumps(manifest).encode()}).items():
            (folder / name).write_bytes(content)
    return run


def ingest(source, out, *more):
    return main(
        ["ingest", str(source), "--out", str(out), "--gpus", f"{ROOT}/hardware", "--models", f"{ROOT}/models", *more]
    )


def jobs_of(run):
    return sorted(run.iterdir())


def test_a_run_becomes_tables_and_one_file_of_observations(measured_run, tmp_path, capsys):
    code = ingest(measured_run, tmp_path / "out", "--json")
    shown = capsys.readouterr()
    assert code == 0, shown.err
    document = json.loads(shown.out)
    assert [job["problem"] for job in document["jobs"]] == ["", ""]
    observations = pq.read_table(tmp_path / "out" / "observations" / "run_id=r1" / "observations.parquet")
    assert len(set(observations["job_id"].to_pylist())) == 2
    for table in ("jobs", "steps", "requests"):
        assert len(list((tmp_path / "out" / "tables" / table / "run_id=r1").iterdir())) == 2


def test_a_job_named_twice_is_ingested_once(measured_run):
    assert len(find_job_folders([measured_run, jobs_of(measured_run)[0]])) == 2


def test_a_job_without_a_manifest_was_not_completed_and_does_not_count(measured_run):
    (jobs_of(measured_run)[0] / "manifest.json").unlink()
    assert len(find_job_folders([measured_run])) == 1


def test_one_broken_job_ends_with_3_and_keeps_the_other(measured_run, tmp_path, capsys):
    (jobs_of(measured_run)[0] / "trace.jsonl.gz").write_bytes(b"torn")
    assert ingest(measured_run, tmp_path / "out") == 3
    assert "1 of 2 jobs refused" in capsys.readouterr().err
    observations = pq.read_table(tmp_path / "out" / "observations" / "run_id=r1" / "observations.parquet")
    assert len(set(observations["job_id"].to_pylist())) == 1


def test_only_broken_jobs_end_with_5_and_leave_no_observations(measured_run, tmp_path):
    for folder in jobs_of(measured_run):
        records = gzip.decompress((folder / "trace.jsonl.gz").read_bytes())
        dropped = json.dumps({"record": "dropped", "count": 3}).encode() + b"\n"
        (folder / "trace.jsonl.gz").write_bytes(gzip.compress(records + dropped))
    assert ingest(measured_run, tmp_path / "out") == 5
    assert not (tmp_path / "out" / "observations").exists()


def test_a_malformed_manifest_is_refused_by_name(measured_run, tmp_path, capsys):
    (jobs_of(measured_run)[0] / "manifest.json").write_text("{}")
    assert ingest(measured_run, tmp_path / "out") == 2
    assert "manifest.json" in capsys.readouterr().err


def test_measured_figures_replace_those_of_the_profile(measured_run):
    folder = find_job_folders([measured_run])[0]
    (folder.path / "engine.json").write_text(json.dumps({"probe": {"bf16_tflops": "fast"}}))
    with pytest.raises(DataInvalidError, match="probe of cpu-1t"):
        measured_catalog([folder], catalog())
    (folder.path / "engine.json").write_text("{}")
    assert measured_catalog([folder], catalog()) == catalog()
