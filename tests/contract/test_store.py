"""One contract for every trace store; the S3 one runs against a real HTTP server."""

import base64
import hashlib
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from moto.server import ThreadedMotoServer

from srfa.errors import StoreError
from tasks.store import LocalStore, S3Store, TraceStore, open_store

BUCKET = "traces"


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server, monkeypatch, tmp_path):
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_store(s3_environment):
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> TraceStore:
    return open_store(str(tmp_path / "store")) if request.param == "local" else request.getfixturevalue("s3_store")


def test_what_is_put_is_what_is_got(store):
    assert store.put("a/b.json", b"one")
    assert store.get("a/b.json") == b"one"
    assert store.exists("a/b.json")


def test_a_file_is_stored_with_its_bytes(store, tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(range(256)) * 4096)
    assert store.put("big", path)
    assert store.get("big") == path.read_bytes()


def test_put_replaces_unless_told_otherwise(store):
    store.put("k", b"one")
    assert store.put("k", b"two")
    assert not store.put("k", b"three", if_absent=True)
    assert store.get("k") == b"two"


def test_of_many_write_once_writers_exactly_one_wins(store):
    together = threading.Barrier(8)

    def write(number: int) -> bool:
        together.wait()
        return store.put("manifest.json", str(number).encode(), if_absent=True)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert store.get("manifest.json") == str(won.index(True)).encode()


def test_keys_come_sorted_and_by_any_prefix(store):
    for key in ("b/2", "a/run-1/x", "a/run=1", "a/run", "b/10", "a-0"):
        store.put(key, b"")
    assert list(store.list()) == sorted(["b/2", "a/run-1/x", "a/run=1", "a/run", "b/10", "a-0"])
    assert list(store.list("a/")) == ["a/run", "a/run-1/x", "a/run=1"]
    assert list(store.list("a/run-")) == ["a/run-1/x"]
    assert list(store.list("c")) == []
    assert list(store.list("c/d/")) == []


def test_a_listing_is_complete_beyond_one_page(store, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    keys = [f"many/{number:02d}" for number in range(25)]
    for key in reversed(keys):
        store.put(key, b"")
    assert list(store.list("many/")) == keys


def test_a_pointer_moves_only_from_where_its_mover_saw_it(store):
    assert store.version("latest") is None
    assert store.replace("latest", b"r1", expected=None)
    assert not store.replace("latest", b"r2", expected=None)
    seen = store.version("latest")
    assert store.replace("latest", b"r2", expected=seen)
    assert not store.replace("latest", b"r3", expected=seen)
    assert store.get("latest") == b"r2"


def test_a_pointer_that_vanished_is_not_moved(store):
    store.put("latest", b"r1")
    seen = store.version("latest")
    store.delete("latest")
    assert not store.replace("latest", b"r2", expected=seen)
    assert not store.exists("latest")


def test_of_many_movers_exactly_one_wins(store):
    store.put("latest", b"start")
    seen = store.version("latest")
    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(lambda n: store.replace("latest", str(n).encode(), expected=seen), range(8)))
    assert sum(moved) == 1
    assert store.get("latest") == str(moved.index(True)).encode()


def test_delete_removes_and_forgives_a_missing_key(store):
    store.put("k", b"")
    store.delete("k")
    store.delete("k")
    assert not store.exists("k")


def test_a_missing_key_is_named_with_a_remedy(store):
    with pytest.raises(StoreError, match=r"nothing/here.* is not there; list"):
        store.get("nothing/here")


def test_check_passes_and_leaves_nothing(store):
    store.check()
    assert list(store.list()) == []


def test_the_uri_opens_the_same_store(store):
    store.put("k", b"same")
    assert open_store(store.uri).get("k") == b"same"
    assert open_store(store.uri).uri == store.uri


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", ".hidden", "a/.b", "a b", "a\nb", "x" * 901]
)
def test_a_key_outside_the_store_is_refused(store, key):
    for use in (
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(StoreError, match="refused; use a relative path"):
            use()


def test_a_prefix_outside_the_store_is_refused(store):
    with pytest.raises(StoreError, match="prefix"):
        list(store.list("../"))


# The address.


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("s3:///prefix", "the bucket is missing"),
        ("s3://b/p?conditional_writes=maybe", "conditional_writes=on|off"),
        ("s3://b/p?region=x", "options 'region=x' are not known"),
        ("file://host/path", "host 'host'"),
        ("", "empty"),
    ],
)
def test_an_address_that_names_no_store_says_so(uri, says):
    with pytest.raises(StoreError) as caught:
        open_store(uri)
    assert says in str(caught.value)


def test_a_relative_path_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("runs")
    assert isinstance(store, LocalStore)
    monkeypatch.chdir("/")
    store.put("k", b"")
    assert (tmp_path / "runs" / "k").is_file()


# Local only.


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="name another store"):
        open_store(str(tmp_path / "file")).check()


def test_a_failed_put_leaves_the_old_object_and_no_rest(tmp_path):
    store = open_store(str(tmp_path / "store"))
    store.put("k", b"old")
    with pytest.raises(StoreError, match="absent"):
        store.put("k", tmp_path / "absent")
    assert store.get("k") == b"old"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["k"]


# S3 only.


def test_missing_credentials_are_told_with_how_to_give_them(s3_store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"no usable credentials.*AWS_ACCESS_KEY_ID"):
        open_store(s3_store.uri).check()


def test_a_server_that_cannot_be_reached_is_told_in_seconds(s3_environment, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StoreError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
            open_store("s3://traces/x").check()


def test_an_endpoint_that_is_no_url_is_told(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
        open_store("s3://traces/x").check()


def test_a_missing_bucket_is_told(s3_environment):
    with pytest.raises(StoreError, match=r"bucket 'absent' does not exist; create it"):
        open_store("s3://absent/x").check()


def test_bodies_carry_a_sha256_checksum(s3_store):
    s3_store.put("k", b"payload")
    prefix = s3_store.uri.removeprefix(f"s3://{BUCKET}/")
    head = boto3.client("s3").head_object(Bucket=BUCKET, Key=f"{prefix}/k", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == _sha256(b"payload")


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


class ForgetfulStore(S3Store):
    """A server that takes conditional writes and ignores the condition."""

    def _put(self, key, data, condition):
        return super()._put(key, data, {})


def test_a_server_that_ignores_conditions_is_refused(s3_store):
    with pytest.raises(StoreError, match=r"ignores conditional writes.*conditional_writes=off"):
        ForgetfulStore(BUCKET, uuid.uuid4().hex).check()


def test_the_weaker_mode_still_keeps_what_is_there(s3_store):
    weak = open_store(f"{s3_store.uri}?conditional_writes=off")
    weak.check()
    assert weak.put("k", b"1", if_absent=True)
    assert not weak.put("k", b"2", if_absent=True)
    assert not weak.replace("k", b"3", expected='"0"')
    assert weak.replace("k", b"3", expected=weak.version("k"))
