import json
import os

from tasks.machine import machine_facts, machine_state

SMI = """#!/bin/sh
echo "0, NVIDIA H100 80GB HBM3, GPU-1, 550.54, 1980 MHz, 2619 MHz, 120.00 W, 700.00 W, 41, 0x0000000000000000"
"""


def test_the_machine_is_described_in_json(monkeypatch):
    document = json.loads(json.dumps({**machine_facts(), **machine_state()}))
    assert document["cpu_count"] == os.cpu_count()
    assert document["memory_bytes"] > document["memory_available_bytes"] > 0
    assert document["load_average_1min"] >= 0


def test_clocks_and_driver_of_each_gpu_are_noted(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gpu,) = machine_state()["gpus"]
    assert gpu["name"] == "NVIDIA H100 80GB HBM3"
    assert gpu["driver_version"] == "550.54"
    assert gpu["clocks.sm"] == "1980 MHz"


def test_a_driver_that_does_not_answer_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine_state()["gpus"] == []
