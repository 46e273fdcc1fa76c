"""Verbs of the command line that say how far a fit can be trusted: ``srfa physics`` and ``srfa identify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srfa import present
from srfa.coefficients import read_coefficients
from srfa.errors import DataInvalidError
from srfa.options import Common, with_common
from srfa.physics_report import write_physics
from srfa.report import PHYSICS_HEADS, physics_rows

CoefficientsFile = Annotated[Path, typer.Option(help="coefficients.json of a fit.")]


@with_common
def physics(
    *,
    coefficients: CoefficientsFile,
    batches: Annotated[int, typer.Option(min=1, help="Random batches to ask for.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Also write physics.json, for 'srfa gate --physics'.")] = None,
    common: Common,
) -> None:
    """Ask a fit for batches nobody measured and compare its answers with physics; code 5 where a rule is broken.

    Example: srfa physics --coefficients coefficients.json --out physics.json
    """
    from srfa.estimators import estimator_named  # noqa: PLC0415 - loads cvxpy and scipy, which 'srfa --help' need not
    from srfa.physics import check_physics  # noqa: PLC0415 - as above

    fitted = read_coefficients(coefficients)
    report = check_physics(
        estimator_named(fitted.estimator), fitted, common.catalog(), n_batches=batches, seed=common.seed
    )
    if out:
        write_physics(report, out)
        present.say(f"wrote {out}")
    if common.as_json:
        present.show_json(report)
    else:
        present.show_table(PHYSICS_HEADS, physics_rows(report), f"{fitted.estimator}: physics on {batches} batches")
    if not report.passed:
        raise DataInvalidError("physics is broken:\n" + "\n".join(f"  {one.sentence}" for one in report.broken))
