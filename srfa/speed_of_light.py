"""Labels that no hardware can reach: a wrong clock, a wrong lag, a wrong unit or a with-sparsity datasheet."""

from __future__ import annotations

import numpy as np

from srfa.catalog import Catalog
from srfa.errors import DataInvalidError
from srfa.observations import Observations
from srfa.resolution import require_resolvable
from srfa.roofline import floor_us
from srfa.schema import SPEED_OF_LIGHT_MARGIN, TOLERATED_SHARE


def possible_steps(observations: Observations, catalog: Catalog) -> tuple[Observations, int]:
    """Return the steps that physics allows, and how many were left out.

    Raises
    ------
    CatalogError, ObservationsError
        A GPU, a model or a routing of experts is unknown; with file and row.
    DataInvalidError
        In some job more than one step in a hundred is under 0.8 x its roofline floor; the text names the job.
    """
    require_resolvable(observations, catalog)
    floor = floor_us(observations, catalog)
    impossible = observations.step_time_us < SPEED_OF_LIGHT_MARGIN * floor
    if not impossible.any():
        return observations, 0
    _refuse_invalid_jobs(observations, floor, impossible)
    return observations.take(np.flatnonzero(~impossible)), int(impossible.sum())


def _refuse_invalid_jobs(
    observations: Observations, floor: np.typing.NDArray[np.float64], impossible: np.typing.NDArray[np.bool_]
) -> None:
    jobs, index = observations.codes("job_id")
    share = np.bincount(index, impossible, len(jobs)) / np.bincount(index, minlength=len(jobs))
    worst = int(np.argmax(share))
    if share[worst] <= TOLERATED_SHARE:
        return
    bad = impossible & (index == worst)
    rows = np.flatnonzero(bad)
    row = int(rows[np.argmin((observations.step_time_us / floor)[rows])])
    place = observations.configurations[observations.configuration_index[row]]
    label, least = observations.step_time_us[row], floor[row]
    raise DataInvalidError(
        f"{observations.origin.file_of(bad)}: job {jobs[worst]}: {share[worst]:.0%} of its steps are faster than light:"
        f" {label:.1f} us where {place.model} on {place.gpu} needs at least {least:.1f} us; suspect the wrong clock"
        " (time inside schedule()), a lag of one step, a wrong unit, or a datasheet with with-sparsity TFLOPS"
    )
