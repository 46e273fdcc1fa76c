"""The simulator against vLLM as it is installed: fresh recordings of real engines, and its scheduler classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schedules import load_of, read, recorded_schedule, server_of, simulated_schedule
from tests.vllm.conftest import REPOSITORY, engine_environment, run_scenarios, write_model
from tests.vllm.recorded_schedules import CASES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
DATA = Path(__file__).parents[1] / "data"
RANDOM_LOADS = 400


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Recordings made now."""
    return run_scenarios(tmp_path_factory.mktemp("schedules"), ["schedules"])


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_an_engine_that_runs_now_is_simulated_exactly(fresh, name):
    records = read(fresh / f"schedule_{name}.jsonl")
    simulated_schedule(load_of(records), server_of(records.engine)).assert_equals(recorded_schedule(records))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].rounds == 1])
def test_the_kept_recordings_are_what_the_engine_does(fresh, name):
    """Not those of several rounds: what a model answers is not reproduced bit for bit."""
    kept = recorded_schedule(read(DATA / f"schedule_{name}.jsonl.gz"))
    kept.assert_equals(recorded_schedule(read(fresh / f"schedule_{name}.jsonl")))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the comparison on random loads printed: vLLM in a process of its own."""
    folder = tmp_path_factory.mktemp("model") / "dense"
    write_model(folder, "dense")
    command = [sys.executable, "-m", "tests.vllm.differential", str(folder), "0", str(RANDOM_LOADS)]
    quiet = engine_environment(VLLM_LOGGING_LEVEL="ERROR")
    done = subprocess.run(command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_simulator_equals_vllms_schedulers_on_random_loads_in_every_field(said):
    assert [line for line in said if "covered" not in line] == []


def test_the_random_loads_cover_both_schedulers_both_policies_preemption_and_prefix_hits(said):
    covered = said[-1]["covered"]
    for scheduler in ("synchronous", "asynchronous"):
        for policy in ("fcfs", "priority"):
            assert covered[f"{scheduler} {policy} steps"] > 1000
            assert covered[f"{scheduler} {policy} preemptions"] > 20
    assert covered["cached_tokens"] > 1000
