"""A real Prefect server with the deployments of this repository and a process worker, once for all tests."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.flows.recorded import write_inputs
from tests.steps import ROOT

PREFECT = str(Path(sys.executable).with_name("prefect"))
LIMIT_S = 120


@dataclass(frozen=True)
class Prefect:
    """A running server: its address, and the environment of commands that talk to it."""

    url: str
    environment: dict[str, str]

    def run(self, *command, timeout_s=600, **variables):
        """Run a command in the checkout; return it with its output."""
        return subprocess.run(
            list(command),
            cwd=ROOT,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def deployment_run(self, timeout_s=600, **parameters):
        """Do ``prefect deployment run collect-and-train/collect-and-train --watch``; return the finished command."""
        options = [word for name, value in parameters.items() for word in ("-p", f"{name}={json.dumps(value)}")]
        name = "collect-and-train/collect-and-train"
        return self.run(PREFECT, "deployment", "run", name, "--watch", *options, timeout_s=timeout_s)

    def post(self, path, **body):
        return httpx.post(f"{self.url}{path}", json=body, timeout=30).raise_for_status().json()

    def last_run(self):
        (run,) = self.post("/flow_runs/filter", sort="START_TIME_DESC", limit=1)
        return run

    def artifacts(self, run):
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        return {artifact["key"]: artifact["data"] for artifact in found if artifact["key"]}

    def log(self, run):
        logs = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, sort="TIMESTAMP_ASC", limit=200)
        return [entry["message"] for entry in logs]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with ``matrix.yaml``, ``wide.yaml`` and ``narrow.yaml``."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """Serve the API on loopback, with everything it keeps in a folder of its own."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    server = Prefect(url, kept | own)
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(f"{url}/health"), process, home / "server.log")
        yield server
    finally:
        end(process)


@pytest.fixture(scope="session")
def deployed(prefect_server, tmp_path_factory):
    """Deploy everything in prefect.yaml and run a worker for it."""
    created = prefect_server.run(PREFECT, "work-pool", "create", "srfa", "--type", "process")
    assert created.returncode == 0, created.stderr
    deployed = prefect_server.run(PREFECT, "--no-prompt", "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    path = tmp_path_factory.mktemp("worker") / "worker.log"
    with path.open("w") as log:
        # Started elsewhere: what a run needs it finds through the deployment, not through the worker's folder.
        process = subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", "srfa"],
            cwd=path.parent,
            env=prefect_server.environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "started" in path.read_text().lower(), process, path)
        yield prefect_server
    finally:
        end(process)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(reached, process, log):
    deadline = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def end(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
