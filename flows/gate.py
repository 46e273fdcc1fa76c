"""Flow ``gate``: judge a report by limits and, where one is given, by a baseline; nothing is measured or fitted."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from srfa.closed_loop_report import read_closed_loop, read_closed_loop_beside
from srfa.gate import GateDecision, check_gate, load_limits
from srfa.physics_report import read_physics
from srfa.validation_report import read_reports


@flow(name="gate")
def gate(
    report: Path,
    limits: Path = Path("examples/gate-local.yaml"),
    baseline: Path | None = None,
    physics: Path | None = None,
    closed_loop: Path | None = None,
) -> GateDecision:
    """Judge a report by limits, a baseline, physics and a closed loop; the run fails where the verdict is no.

    Args:
        report: report.json of a release, or of srfa validate.
        limits: What the gate asks for.
        baseline: The report.json to compare with, and the closed_loop.json beside it. Empty: none.
        physics: physics.json of a release, or of srfa physics. Empty: none.
        closed_loop: closed_loop.json of a release, or of srfa replay. Empty: none.
    """
    decision = check_gate(
        read_reports(report),
        load_limits(limits),
        read_reports(baseline) if baseline else None,
        physics=read_physics(physics) if physics else None,
        closed_loop=read_closed_loop(closed_loop) if closed_loop else None,
        baseline_closed_loop=read_closed_loop_beside(baseline) if baseline else None,
    )
    rows = [finding.model_dump(mode="json") for finding in decision.findings]
    create_table_artifact(table=rows, key="verdict", description="Every rule that was looked at.")
    decision.require_passed()
    return decision


if __name__ == "__main__":
    from flows.command_line import gate_command, run_command

    run_command(gate_command)
