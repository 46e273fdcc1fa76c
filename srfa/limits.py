"""The limits file of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from srfa.document import read_yaml
from srfa.errors import LimitsError
from srfa.folds import Split
from srfa.specs import Spec
from srfa.wording import explain


class SplitLimits(Spec):
    """What every held-out group of one split must keep to; None is no limit.

    Parameters
    ----------
    required
        The verdict is no where the split is missing or impossible.
    min_jobs
        Held-out jobs below which a fold proves nothing.
    """

    required: bool = True
    max_mape_pct: PositiveFloat | None = None
    max_abs_bias_pct: PositiveFloat | None = None
    max_p90_ape_pct: PositiveFloat | None = None
    min_jobs: PositiveInt = 1


class BaselineLimits(Spec):
    """How much worse than the baseline a fold may be.

    Parameters
    ----------
    max_regression_pct_points
        Rise of a fold's MAPE that is tolerated, in percentage points.
    confidence
        Where both reports know the errors of at least two common jobs, a rise also has to be significant: the lower
        end of this two-sided interval (paired bootstrap over jobs) lies above 0.
    """

    max_regression_pct_points: float = Field(default=1.0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class PhysicsLimits(Spec):
    """How strict the gate is on a check of physics.

    Parameters
    ----------
    required
        True: the check must have been made and every rule must hold. False: what is broken is told and tolerated.
    """

    required: bool = True


class ClosedLoopLimits(Spec):
    """What the replays of measured jobs must keep to; None is no limit.

    Parameters
    ----------
    required
        The verdict is no where nothing could be replayed.
    min_jobs
        Replayed jobs below which a median proves nothing: of the headline, of each of ``splits``, and of each metric
        that has a limit; a job whose answers are all of one token has no TPOT and does not lack it.
    max_not_replayed
        Jobs that could not be replayed in any split, as many as are tolerated.
    max_median_e2e_pct, max_median_ttft_pct, max_median_tpot_pct
        Median over jobs of the absolute error of a job's mean.
    max_abs_bias_pct
        Mean of the signed errors, of each of the three.
    splits
        Splits whose own medians must keep to the same limits; the headline takes each job's nearest fold.
    max_regression_pct_points
        Rise of a median over the baseline's that is tolerated, in percentage points.
    """

    required: bool = True
    min_jobs: PositiveInt = 1
    max_not_replayed: int = Field(default=0, ge=0)
    max_median_e2e_pct: PositiveFloat | None = None
    max_median_ttft_pct: PositiveFloat | None = None
    max_median_tpot_pct: PositiveFloat | None = None
    max_abs_bias_pct: PositiveFloat | None = None
    splits: tuple[Split, ...] = ()
    max_regression_pct_points: float = Field(default=1.0, ge=0)


class Limits(Spec):
    """A limits file.

    Parameters
    ----------
    closed_loop
        None, where the file has no such section: the closed loop is told and not judged.
    physics
        None, where the file has no such section: a check that was made must hold, one that was not is not asked for.
    """

    schema_version: Literal[1] = 1
    splits: dict[Split, SplitLimits] = Field(min_length=1)
    baseline: BaselineLimits = BaselineLimits()
    physics: PhysicsLimits | None = None
    closed_loop: ClosedLoopLimits | None = None


def load_limits(path: Path) -> Limits:
    """Read a limits file (YAML).

    Raises
    ------
    LimitsError
        The file is missing or malformed; each finding names file, line, key, value and expectation.
    """
    document = read_yaml(path, LimitsError)
    try:
        return Limits.model_validate(document.data)
    except ValidationError as error:
        findings = [f"{document.place(item['loc'])}: {explain(item, Limits)}" for item in error.errors()]
        raise LimitsError("\n".join(findings)) from error
