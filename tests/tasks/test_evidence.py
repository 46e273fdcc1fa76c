"""Files first, manifest last, and nobody's manifest over another's files."""

import pytest

from srfa.errors import StoreError
from srfa.specs import JobOutcome
from srfa.traces.plugin import Window
from tasks.evidence import job_prefix, read_manifest, write_failure, write_measurement
from tasks.store import LocalStore


class WatchedStore(LocalStore):
    """Notes the order of writes, and can fail at a key."""

    def __init__(self, root, fails_at=""):
        super().__init__(root)
        self.written, self.fails_at = [], fails_at

    def put(self, key, data, *, if_absent=False):
        name = key.rpartition("/")[2]
        if name == self.fails_at:
            raise StoreError("planted: the disk is full")
        self.written.append(name)
        return super().put(key, data, if_absent=if_absent)


@pytest.fixture
def outcome(job):
    prefix = job_prefix("r1", job.job_id)
    return JobOutcome(job_id=job.job_id, group_id=job.group_id, prefix=prefix, status="measured", n_requests=5)


@pytest.fixture
def files(tmp_path):
    paths = {name: tmp_path / name for name in ("trace.jsonl.gz", "client.json")}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def write(store, job, outcome, files):
    window = Window(job_id=job.job_id, t_start_ns=1, t_end_ns=2)
    return write_measurement(store, job, outcome, run_id="r1", window=window, files=files)


def test_the_manifest_is_written_last(job, outcome, files, tmp_path):
    store = WatchedStore(tmp_path / "store")
    assert write(store, job, outcome, files) == outcome
    assert store.written == ["trace.jsonl.gz", "client.json", "manifest.json"]
    assert read_manifest(store, "r1", job.job_id).outcome == outcome


@pytest.mark.parametrize("fails_at", ["trace.jsonl.gz", "client.json", "manifest.json"])
def test_a_write_that_fails_leaves_the_job_unmeasured(job, outcome, files, tmp_path, fails_at):
    store = WatchedStore(tmp_path / "store", fails_at)
    with pytest.raises(StoreError, match="disk is full"):
        write(store, job, outcome, files)
    assert read_manifest(store, "r1", job.job_id) is None


def test_the_same_measurement_twice_is_the_first_outcome(job, outcome, files, tmp_path):
    store = LocalStore(tmp_path / "store")
    write(store, job, outcome, files)
    assert write(store, job, outcome.model_copy(update={"wall_s": 9.0}), files) == outcome


def test_two_measurements_that_overwrote_each_other_are_refused(job, outcome, files, tmp_path):
    store = LocalStore(tmp_path / "store")
    write(store, job, outcome, files)
    files["client.json"].write_text("another measurement")
    with pytest.raises(StoreError, match=r"overwrote each other; delete traces/run_id=r1"):
        write(store, job, outcome, files)


def test_a_failure_keeps_what_evidence_there_is(job, outcome, files, tmp_path):
    store = LocalStore(tmp_path / "store")
    failed = outcome.model_copy(update={"status": "failed", "reason": "load_failed"})
    write_failure(store, failed, files | {"server.log": tmp_path / "absent"})
    names = [key.removeprefix(f"{outcome.prefix}/") for key in store.list()]
    assert names == ["client.json", "failure.json", "trace.jsonl.gz"]
    assert read_manifest(store, "r1", job.job_id) is None
