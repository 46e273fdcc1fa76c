"""What a gate says: a finding for every rule, and the verdict."""

from __future__ import annotations

from typing import Literal

from srfa.errors import GateFailed
from srfa.specs import Spec

Rule = Literal[
    "max_mape_pct",
    "max_abs_bias_pct",
    "max_p90_ape_pct",
    "min_jobs",
    "required_split",
    "fold_failed",
    "not_converged",
    "speed_of_light",
    "baseline_regression",
    "lost_coverage",
    "physics",
    "closed_loop",
    "simulated",
]


class Finding(Spec):
    """One rule applied to one fold (or to a whole split, where ``held_out`` is empty).

    A rule of physics or of the closed loop belongs to no split; it stands in the place of the group.

    Parameters
    ----------
    tolerated
        It passes and is to be told all the same: it is broken and the limits say that it is only to be told, or it says
        what the verdict is worth.
    """

    rule: Rule
    split: str
    held_out: str
    value: float | None
    limit: float | None
    passed: bool
    sentence: str
    tolerated: bool = False


class GateDecision(Spec):
    """The verdict with every rule that was looked at."""

    passed: bool
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that say no."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def told(self) -> tuple[Finding, ...]:
        """The findings to be read: those that are tolerated, then those that say no."""
        return (*(finding for finding in self.findings if finding.tolerated), *self.broken)

    @property
    def simulated(self) -> bool:
        """Whether the steps came from a simulated engine, so that the verdict is a rehearsal's."""
        return any(finding.rule == "simulated" for finding in self.findings)

    def require_passed(self) -> None:
        """Do nothing where the verdict is yes.

        Raises
        ------
        GateFailed
            The verdict is no; the text has a sentence for every broken rule.
        """
        if not self.passed:
            raise GateFailed("gate failed:\n" + "\n".join(f"  {finding.sentence}" for finding in self.broken))


def finding_of(
    rule: Rule,
    split: str,
    held_out: str,
    *,
    passed: bool,
    sentence: str,
    value: float | None = None,
    limit: float | None = None,
) -> Finding:
    """Return a finding; ``value`` and ``limit`` where the rule has them."""
    return Finding(
        rule=rule, split=split, held_out=held_out, value=value, limit=limit, passed=passed, sentence=sentence
    )
