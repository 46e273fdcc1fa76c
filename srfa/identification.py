"""What is known of each coefficient of a fit, as data."""

from __future__ import annotations

from typing import Literal

from srfa.specs import Spec


class Parameter(Spec):
    """One coefficient.

    Parameters
    ----------
    influence
        Root mean square of ``d log(step time) / d log(parameter)``: about its share of a step.
    variance_inflation
        By how much the other parameters inflate its variance; 1 stands alone, infinite where no step depends on it.
    log_sd
        Spread of its logarithm by bootstrap over jobs.
    weak
        Its logarithm is known no better than to 0.3, or no step depends on it.
    """

    name: str
    influence: float
    variance_inflation: float
    log_sd: float
    at_bound: bool
    weak: bool


class Correlated(Spec):
    """Two coefficients whose estimates move together."""

    first: str
    second: str
    correlation: float


class Helpful(Spec):
    """A kind of job, and the share of a weak coefficient's variance that is left once it was measured."""

    parameter: str
    job: str
    variance_left: float


class Identification(Spec):
    """What the steps of a fit say of its coefficients.

    Parameters
    ----------
    residual_log_sd
        Robust spread of ``log(measured / predicted)``.
    condition_number
        Largest over smallest eigenvalue of ``J'J`` with columns of length 1.
    correlated, groups
        Pairs of estimates that move together, and the groups they chain up to.
    helpful
        For each weak coefficient the candidate jobs, the most helpful first.
    """

    schema_version: Literal[1] = 1
    estimator: str
    n_steps: int
    n_jobs: int
    residual_log_sd: float
    condition_number: float
    parameters: tuple[Parameter, ...]
    correlated: tuple[Correlated, ...]
    groups: tuple[tuple[str, ...], ...]
    helpful: tuple[Helpful, ...]

    @property
    def weak(self) -> tuple[str, ...]:
        """Names of the weakly identified coefficients."""
        return tuple(one.name for one in self.parameters if one.weak)

    def best_job(self, parameter: str) -> Helpful | None:
        """Return the kind of job that would tell most of a weak coefficient; None where none was asked about."""
        return next((one for one in self.helpful if one.parameter == parameter), None)
