"""A campaign without engines: what its steps take comes from coefficients. Said once by files, then as a document.

Nodes read no files of the process that started the campaign, so the coefficients travel with each request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from srfa.coefficients import Coefficients, read_coefficients
from srfa.provenance import calibration_differences
from srfa.specs import Spec


class _Clock(Spec):
    latency_mode: str | None = Field(
        default=None, description="Estimator that tells a step's time. Empty: the coefficients'; roofline needs none."
    )
    step_noise: float = Field(default=0.0, ge=0, description="Standard deviation of the logarithm of a step's factor.")
    slow_steps: float = Field(default=0.0, ge=0, le=1, description="Share of steps that take three times as long.")
    noise_seed: int = Field(default=0, ge=0, description="Another seed gives other noise; each job has its own.")


class Rehearsal(_Clock):
    """What a node needs to know to simulate jobs; the words are those of :class:`RehearsalSettings`."""

    coefficients: Coefficients | None = None


class RehearsalSettings(_Clock):
    """How the engines of a run are simulated, as a parameter of a flow."""

    coefficients: Path | None = Field(
        default=None, description="coefficients.json of a fit. Empty: only the latency mode roofline."
    )

    def read(self) -> Rehearsal:
        """Read the coefficients and see that they can tell a step's time.

        Raises
        ------
        CoefficientsError
            The file cannot be used.
        UsageError
            The latency mode is unknown, or needs other coefficients than these.
        """
        from srfa.simulate.clock import clock_estimator  # noqa: PLC0415 - numba, which --help must not wait for

        found = None if self.coefficients is None else read_coefficients(self.coefficients)
        clock_estimator(found, self.latency_mode)
        return Rehearsal.model_validate({**self.model_dump(), "coefficients": found})


def remarks(rehearsal: Rehearsal | None) -> tuple[str, ...]:
    """Return what whoever looks at a run should know of its engines; nothing where they are real."""
    if rehearsal is None:
        return ()
    what = "this is a rehearsal: engines are simulated, nothing is measured"
    if rehearsal.coefficients is None:
        return (what,)
    return (what, *calibration_differences(rehearsal.coefficients.provenance, ()))
