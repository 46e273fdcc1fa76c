"""The engine's life, on a small real server that misbehaves on demand."""

import os
import socket
import time

import pytest

from srfa.errors import EngineError
from tasks.engine import VllmEngine
from tasks.workplace import Workplace


@pytest.fixture
def engine(job, cpu, settings, tmp_path):
    def make(**changes):
        return VllmEngine(Workplace(job, cpu, settings.model_copy(update=changes), folder=tmp_path))

    return make


@pytest.fixture
def refuses(children):
    def error_of(engine):
        with pytest.raises(EngineError) as caught, engine:
            pass
        assert not children(), "a process was left behind"
        return caught.value

    return error_of


def test_inside_the_block_the_engine_is_ready_and_verified_and_after_it_gone(engine, children):
    with engine() as running:
        running.check_alive()
        running.check_usable()
        running.reset_caches()
        assert running.resolved["max_num_seqs"] == 8
        assert running.requested["max_num_seqs"] == 8
        assert running.start_s > 0.3, "ready before /health said so"
        assert running.traces() == [running.trace]
    assert not children()


def test_an_engine_that_dies_at_start_shows_its_last_words(engine, monkeypatch, refuses):
    monkeypatch.setenv("FAKE_ENGINE", "dies")
    error = refuses(engine())
    assert error.reason == "engine_start"
    assert "no such attention backend" in str(error)
    assert "status 1" in str(error)


def test_an_engine_that_never_gets_ready_is_given_up(engine, monkeypatch, refuses):
    monkeypatch.setenv("FAKE_ENGINE", "never_ready")
    begin = time.monotonic()
    error = refuses(engine(ready_timeout_s=1))
    assert error.reason == "not_ready"
    assert "/health" in str(error)
    assert time.monotonic() - begin < 10


def test_a_resolved_value_that_differs_is_refused_by_name(engine, monkeypatch, refuses):
    monkeypatch.setenv("FAKE_ENGINE", "wrong_config")
    error = refuses(engine())
    assert error.reason == "config_mismatch"
    assert "max_num_seqs: requested 8, resolved 7" in str(error)


def test_an_engine_that_is_not_traced_is_refused(engine, monkeypatch, refuses):
    monkeypatch.setenv("FAKE_ENGINE", "no_trace")
    error = refuses(engine())
    assert error.reason == "config_mismatch"
    assert "TracingScheduler" in str(error)


def test_a_port_in_use_is_refused_before_anything_starts(engine, refuses):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        error = refuses(engine(port=other.getsockname()[1]))
    assert error.reason == "port_in_use"
    assert "port=0" in str(error)


def test_a_port_taken_after_the_check_is_told_apart(engine, monkeypatch, settings, refuses):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr("tasks.engine._port", lambda _: other.getsockname()[1])
        monkeypatch.setattr("tasks.engine.VllmEngine._is_healthy", lambda _: False)
        assert refuses(engine()).reason == "port_in_use"


def test_a_deaf_engine_is_killed_after_the_grace(engine, monkeypatch, children):
    monkeypatch.setenv("FAKE_ENGINE", "deaf,tree")
    with engine(stop_grace_s=0.3):
        assert len(children()) == 4, "two guards, the server and its child"
    assert not children()


def test_a_killed_engine_is_noticed(engine, children):
    with engine() as running:
        server = max(children(), key=lambda child: child.create_time())
        server.kill()
        with pytest.raises(EngineError, match="ended with status 137") as caught:
            running.check_usable()
    assert caught.value.reason == "engine_died"


def test_the_environment_is_the_profile_s(job, cpu, settings, tmp_path, monkeypatch):
    for name in ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.setenv(name, "7")
    place = Workplace(job, cpu, settings, folder=tmp_path, first_core=1)
    environment = place.environment
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"] == str(tmp_path / "package")
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE"
    allowed = sorted(os.sched_getaffinity(0))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == str(allowed[1 % len(allowed)])
    assert environment["SRFA_LIFELINE"] == environment["HF_HUB_OFFLINE"] == "1"


def test_on_a_gpu_no_core_is_bound_and_no_thread_count_set(job, cpu, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    sheet = cpu.datasheet.model_copy(update={"kind": "cuda", "omp_threads": None})
    place = Workplace(job, cpu.model_copy(update={"datasheet": sheet}), settings, folder=tmp_path)
    assert "OMP_NUM_THREADS" not in place.environment
    assert "VLLM_CPU_OMP_THREADS_BIND" not in place.environment
    assert place.environment["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_engine_s_package_holds_its_plugin_and_nothing_else_of_srfa(job, cpu, settings, tmp_path):
    package = tmp_path / "package"
    Workplace(job, cpu, settings, folder=tmp_path)
    assert sorted(path.name for path in (package / "srfa").iterdir()) == ["__init__.py", "vllm"]
    from importlib.metadata import distributions

    (found,) = distributions(path=[str(package)])
    (entry,) = found.entry_points
    assert (found.name, entry.group, entry.value) == ("srfa", "vllm.general_plugins", "srfa.vllm.lifeline:register")
