"""What may colour a measurement on this machine: processor, clocks, driver, temperature, other load."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import JsonValue

_GPU_FIELDS: Final = (
    "index",
    "name",
    "uuid",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
_SMI_LIMIT_S: Final = 20.0
_GOVERNOR: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_CPUINFO: Final = Path("/proc/cpuinfo")
_MEMINFO: Final = Path("/proc/meminfo")
_BYTES_PER_KIB: Final = 1024


def machine_facts() -> dict[str, JsonValue]:
    """Return what does not change while the machine runs."""
    return {
        "node": platform.node(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu_model": next(iter(_cpuinfo("model name")), None),
        "cpu_count": os.cpu_count(),
        "cpu_governor": _text(_GOVERNOR),
        "memory_bytes": _meminfo_bytes("MemTotal"),
        "image": os.environ.get("SRFA_IMAGE"),
    }


def machine_state() -> dict[str, JsonValue]:
    """Return what changes: taken before and after each job's load. A GPU's units are those of ``nvidia-smi``."""
    return {
        "load_average_1min": os.getloadavg()[0],
        "cpu_mhz": [float(value) for value in _cpuinfo("cpu MHz")],
        "memory_available_bytes": _meminfo_bytes("MemAvailable"),
        "gpus": list(_gpus()),
    }


def _gpus() -> list[JsonValue]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = [smi, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer must not cost the measurement
    rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]


def _cpuinfo(name: str) -> list[str]:
    """Return one value a core of a line of ``/proc/cpuinfo``; none where the architecture has no such line."""
    lines = (_text(_CPUINFO) or "").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def _meminfo_bytes(name: str) -> int | None:
    lines = (_text(_MEMINFO) or "").splitlines()
    return next((int(line.split()[1]) * _BYTES_PER_KIB for line in lines if line.startswith(f"{name}:")), None)


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip()
    return None
