"""Bad input of the main flow: refused before anything starts, with its exit code, earlier results untouched."""

import hashlib
from pathlib import Path

import pytest
import typer
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from flows.command_line import collect_and_train_command, site_of
from flows.screen import place, show_summary
from srfa.errors import InputError
from tasks.store import open_store
from tasks.summary import RunSummary, concluded
from tests.flows.conftest import free_port
from tests.flows.recorded import MATRIX, jobs, record_run, write_inputs
from tests.steps import ROOT

APP = typer.Typer()
APP.command()(collect_and_train_command)
EMPTY = MATRIX + "exclude: [{model: [srfa/tiny-dense, srfa/tiny-moe]}]\n"


@pytest.fixture
def folder(tmp_path):
    """Inputs, and a store with an earlier run."""
    write_inputs(tmp_path)
    record_run(str(tmp_path / "store"), "r1", jobs(tmp_path / "matrix.yaml")[:1])
    return tmp_path


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """An environment in which no AWS credentials can be found."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def run(folder: Path, **options):
    given = {
        "matrix": folder / "matrix.yaml",
        "limits": folder / "wide.yaml",
        "store": folder / "store",
        "hardware": ROOT / "hardware",
        "models": ROOT / "models",
    } | options
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return CliRunner().invoke(APP, words)


def tree(folder: Path):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name != ".lock"}


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("matrix", MATRIX.replace("tiny-dense", "tiny-dens"), "did you mean 'srfa/tiny-dense'"),
        ("matrix", MATRIX.replace("cpu-1t,", "cpu-1k,"), "unknown GPU 'cpu-1k'"),
        ("matrix", MATRIX.replace("num_prompts", "num_promts"), "did you mean 'num_prompts'"),
        ("matrix", "name: [\n", "matrix.yaml:"),
        ("matrix", EMPTY, "the expansion is empty"),
        ("limits", "splits: {leave-one-gpu-outs: {}}\n", "leave-one-gpu-out"),
        ("limits", "splits: [", "limits.yaml"),
    ],
)
def test_a_malformed_file_exits_with_2_and_names_the_finding(folder, name, text, finding):
    path = folder / f"bad-{name}.yaml"
    path.write_text(text)
    before = tree(folder)
    ended = run(folder, **{name: path})
    assert ended.exit_code == 2, ended.output
    assert finding in ended.stderr
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"estimator": "srfa-sed"}, "did you mean 'srfa-seed'"),
        ({"matrix": "nowhere.yaml"}, "nowhere.yaml"),
        ({"store": "ftp://host/x"}, "unknown scheme 'ftp'"),
        ({"run_id": "r1"}, "holds that run already"),
        ({"run_id": "../r1"}, "run_id="),
        ({"hardware": "nowhere"}, "nowhere"),
        ({"rehearse": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"latency_mode": "srfa"}, "srfa needs coefficients"),
        ({"latency_mode": "roofline", "run_id": "r2"}, "take rehearsal-r2"),
        ({"run_id": "rehearsal-r2"}, "such runs are rehearsals"),
        ({"step_noise": 0.05}, "name --rehearse"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_says_what_to_do(folder, options, finding):
    before = tree(folder)
    ended = run(folder, **options)
    assert ended.exit_code == 2, ended.output
    assert finding in ended.stderr
    assert tree(folder) == before


def test_missing_s3_credentials_exit_with_2_and_say_which(folder, no_credentials, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    before = tree(folder)
    ended = run(folder, store="s3://traces/night")
    assert ended.exit_code == 2, ended.output
    assert "AWS_ACCESS_KEY_ID" in ended.stderr
    assert tree(folder) == before


def test_an_unreachable_s3_exits_with_2_and_says_where_it_looked(folder, no_credentials, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    before = tree(folder)
    ended = run(folder, store="s3://traces/night")
    assert ended.exit_code == 2, ended.output
    assert "cannot be reached" in ended.stderr
    assert "AWS_ENDPOINT_URL" in ended.stderr
    assert tree(folder) == before


def test_a_bucket_that_does_not_exist_exits_with_2(folder, no_credentials, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    ended = run(folder, store="s3://no-such-bucket/night")
    assert ended.exit_code == 2, ended.output
    assert "'no-such-bucket' does not exist; create it" in ended.stderr


def test_a_site_file_is_taken_and_the_command_line_wins(tmp_path):
    (tmp_path / "site.yaml").write_text("hardware: a\nmodels: b\nengine: {port: 8123}\ncluster: {num_cpus: 2}\n")
    site = site_of(tmp_path / "site.yaml", hardware=None, models=Path("c"), ray_address="ray://x", out=None)
    assert (site.hardware, site.models, site.engine.port) == (Path("a"), Path("c"), 8123)
    assert (site.cluster.address, site.cluster.num_cpus) == ("ray://x", 2)


def test_an_unknown_key_of_a_site_file_is_refused_with_its_line(tmp_path):
    (tmp_path / "site.yaml").write_text("hardware: a\nengines: {port: 1}\n")
    with pytest.raises(InputError, match=r"site\.yaml:2: unknown key 'engines'; did you mean 'engine'"):
        site_of(tmp_path / "site.yaml", hardware=None, models=None, ray_address=None, out=None)


def test_help_names_every_option():
    shown = CliRunner().invoke(APP, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for option in (
        "--matrix",
        "--store",
        "--limits",
        "--estimator",
        "--run-id",
        "--resume",
        "--ray-address",
        "--out",
        "--rehearse",
        "--latency-mode",
        "--step-noise",
        "--slow-steps",
        "--noise-seed",
    ):
        assert option in shown.output


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"latest": True}, "verdict: passed; it is the latest now"),
        ({"latest": False}, "a newer one stays the latest"),
        ({"simulated": True}, "it is a rehearsal, which is never the latest"),
    ],
)
def test_the_screen_ends_with_release_and_verdict(folder, capsys, state, words):
    store = open_store(str(folder / "store"))
    store.put("releases/abc/report.json", b'{"schema_version": 1, "reports": []}')
    summary = RunSummary(store_uri=store.uri, release_id="abc", passed=True, **state)
    show_summary(concluded(summary), store)
    *_, release, verdict = capsys.readouterr().out.splitlines()
    assert release.endswith("store/releases/abc")
    assert words in verdict


def test_a_local_store_is_shown_as_a_path_relative_where_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place((tmp_path / "runs").as_uri()) == "runs"
    assert place("file:///elsewhere/a%20b") == "/elsewhere/a b"
    assert place("s3://bucket/x") == "s3://bucket/x"
