"""How what a simulator left is told from what was measured, wherever it goes: by its engine version, and by its run."""

from __future__ import annotations

from typing import Final

SIMULATED: Final = "+simulated"
"""Ending of the engine version of simulated traces: no fit to them can be taken for one to measurements."""
REHEARSAL: Final = "rehearsal"
"""How the names of runs begin in which every job is simulated, and of no others."""


def is_simulated(software_version: str) -> bool:
    """Return whether an engine of that version was simulated.

    >>> is_simulated("vllm 0.32.0+simulated"), is_simulated("vllm 0.32.0")
    (True, False)
    """
    return software_version.endswith(SIMULATED)


def is_rehearsal(run_id: str) -> bool:
    """Return whether a run of that name is one whose jobs are simulated.

    >>> is_rehearsal("rehearsal"), is_rehearsal("rehearsal-two"), is_rehearsal("rehearsals")
    (True, True, False)
    """
    return run_id == REHEARSAL or run_id.startswith(f"{REHEARSAL}-")
