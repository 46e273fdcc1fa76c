"""What measures the jobs of one engine group: a real vLLM server with its load, or the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from srfa.specs import BenchmarkJob, JobOutcome
from srfa.traces.plugin import Window


@dataclass(frozen=True, slots=True)
class Measured:
    """What one job left: its files by the names they have in the store, and what its manifest says of them."""

    outcome: JobOutcome
    window: Window
    files: Mapping[str, Path]


class Engine(Protocol):
    """Serves one job after another in the same configuration."""

    def measure(self, job: BenchmarkJob) -> Measured:
        """Serve the job's load and return what it left.

        Raises
        ------
        SrfaError, OSError
            What befell the job.
        """

    def check_usable(self) -> None:
        """Do nothing where further jobs can be served.

        Raises
        ------
        EngineError
            ``engine_died``: no further job can be.
        """

    def evidence(self, job: BenchmarkJob) -> Mapping[str, Path]:
        """Return the files that show why a job failed, by name; those that are not there count as none."""
