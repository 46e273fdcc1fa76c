from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from srfa.errors import DataInvalidError
from srfa.schema import JOBS, OBSERVATIONS, REQUESTS, STEPS
from srfa.traces.gates import summarise
from srfa.traces.ingest import ingest_job


@pytest.fixture
def files(toy, make_job):
    run = toy([(100, 6), (40, 8)])
    return run.files(make_job(num_prompts=2), resolved={"dtype": "bfloat16"}, environment={"image": "x:1"}, windows=[])


@pytest.fixture
def ingest(make_job, make_gpu):
    def run(files, clock="step_time", **options):
        return ingest_job(files, make_job(num_prompts=2), make_gpu(clock), run_id="r1", **options)

    return run


def test_a_jobs_files_become_its_tables(ingest, files):
    ingested = ingest(files)
    for name, schema in {"jobs": JOBS, "steps": STEPS, "requests": REQUESTS, "observations": OBSERVATIONS}.items():
        assert getattr(ingested, name).schema.equals(schema, check_metadata=True)
    job = ingested.jobs.to_pylist()[0]
    assert (job["dtype"], job["run_id"], json.loads(job["environment"])) == ("bfloat16", "r1", {"image": "x:1"})
    assert ingested.requests["ttft_us"].null_count == 0
    assert ingested.passed, summarise(ingested.findings)


def test_a_folder_gives_what_its_files_give(ingest, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert ingest(tmp_path) == ingest(files)


def test_the_profile_chooses_the_label(ingest, files):
    wall, cpu = ingest(files).observations, ingest(files, clock="step_cpu_time").observations
    assert cpu["step_wall_time_us"].equals(wall["step_time_us"])
    assert set(cpu["step_time_method"].to_pylist()) == {"cpu_time"}


def test_the_floor_is_asked_for_the_observations_and_its_breach_is_a_finding(ingest, files):
    ingested = ingest(files, floor=lambda table: 10 * table["step_time_us"].to_numpy())
    assert [finding.rule for finding in ingested.findings if not finding.passed] == ["speed_of_light"]
    assert not ingested.passed


def test_no_usable_step_is_a_finding_and_asks_for_no_floor(ingest, files):
    lines = gzip.decompress(files["trace.jsonl.gz"]).splitlines(keepends=True)
    files["trace.jsonl.gz"] = gzip.compress(lines[0])
    ingested = ingest(files, floor=lambda table: np.empty(1 / 0))
    assert "valid_steps" in {finding.rule for finding in ingested.findings if not finding.passed}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("manifest.json", "never completed"), ("client.json", "measure it again"), ("trace.jsonl.gz", "measure it again")],
)
def test_a_missing_file_is_named(ingest, files, tmp_path, name, remedy):
    del files[name]
    with pytest.raises(DataInvalidError, match=rf"^job [0-9a-f]{{12}}: {name} is missing; .*{remedy}"):
        ingest(files)
    with pytest.raises(DataInvalidError, match=r"manifest\.json is missing"):
        ingest(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("manifest.json", b'{"job_id": "0123456789ab"}', "is of job 0123456789ab"),
        ("manifest.json", b"", "not JSON"),
        ("engine.json", b"[]", "a list, expected an object"),
        ("engine.json", b'{"windows": [{"job_id": "x"}]}', r"windows\.0\.t_start_ns: Field required"),
        ("trace.jsonl.gz", b"plain", "broken gzip"),
        ("trace.jsonl.gz", gzip.compress(b"{}" * 99)[:-12], "broken gzip"),
        ("client.json", b"{", "not JSON"),
    ],
)
def test_a_broken_file_is_named(ingest, files, name, content, complaint):
    with pytest.raises(DataInvalidError, match=rf"^job [0-9a-f]{{12}}: {name}.*{complaint}"):
        ingest(files | {name: content})


def test_traces_of_further_ranks_are_refused_not_passed_over(ingest, files):
    with pytest.raises(DataInvalidError, match=r"trace\.dp1\.jsonl\.gz: .*data_parallel_size 1"):
        ingest(files | {"trace.dp1.jsonl.gz": files["trace.jsonl.gz"]})
