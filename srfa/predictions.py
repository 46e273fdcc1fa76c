"""Predictions beside what was measured: the input's rows plus the prediction, its interval and how far it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.domain import grade_steps
from srfa.estimators import estimator_named
from srfa.files import writing
from srfa.metrics import Errors, Scored, errors
from srfa.observations import Observations, load_unlabelled
from srfa.ragged import FloatArray
from srfa.resolution import require_resolvable

PREDICTED = "predicted_step_time_us"
ADDED_COLUMNS = (PREDICTED, f"{PREDICTED}_p05", f"{PREDICTED}_p95", "domain_grade", "domain_reason", "leverage_ratio")


def predict_files(paths: Sequence[Path], coefficients: Coefficients, catalog: Catalog, out: Path) -> Errors | None:
    """Write the rows of all files, in their order, with ``predicted_step_time_us``; return the errors.

    ``step_time_us`` may be absent or null: the errors are those of the rows that have it, None where no row has.

    Coefficients that know what they were fitted to add ``domain_grade``, ``domain_reason`` and ``leverage_ratio``;
    those with intervals ``predicted_step_time_us_p05`` and ``_p95``, the interval of the step's grade.

    Rows marked ``valid = false`` are kept with a null prediction and do not count.

    Raises
    ------
    ObservationsError, CatalogError
        A file cannot be used, or names an unknown GPU or model.
    InputError
        ``out`` cannot be written.
    UsageError
        The coefficients are of an unknown estimator.
    """
    observations = load_unlabelled(paths)
    require_resolvable(observations, catalog)
    estimator = estimator_named(coefficients.estimator)
    predicted_us = estimator.predict(coefficients, estimator.features(observations, catalog))
    rows = pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")
    valid = pc.fill_null(rows["valid"], True).to_numpy() if "valid" in rows.column_names else np.ones(len(rows), bool)
    rows = rows.drop_columns([name for name in ADDED_COLUMNS if name in rows.column_names])
    place = np.where(valid, np.cumsum(valid) - 1, 0)
    for name, column in _columns(observations, predicted_us, coefficients, catalog).items():
        rows = rows.append_column(name, pc.if_else(pa.array(valid), column.take(pa.array(place)), None))
    with writing(out) as temporary:
        pq.write_table(rows, temporary, compression="zstd")
    scored = Scored(observations.step_time_us, predicted_us, np.array(observations.job_ids, dtype=np.str_))
    labelled = ~np.isnan(observations.step_time_us)
    return errors(scored.where(labelled)) if labelled.any() else None


def _columns(
    observations: Observations, predicted_us: FloatArray, coefficients: Coefficients, catalog: Catalog
) -> dict[str, pa.Array]:
    """Return the added columns of the valid rows, in the order they are written."""
    added = {PREDICTED: pa.array(predicted_us)}
    if coefficients.domain is None:
        return added
    graded = grade_steps(observations, catalog, coefficients.domain)
    if coefficients.intervals is not None:
        low, high = coefficients.intervals.bounds_us(predicted_us, graded.grade)
        added |= {f"{PREDICTED}_p05": pa.array(low), f"{PREDICTED}_p95": pa.array(high)}
    return added | {
        "domain_grade": pa.array(graded.grade),
        "domain_reason": pa.array(graded.reasons, pa.string()).take(pa.array(graded.reason_index)),
        "leverage_ratio": pa.array(graded.leverage_ratio),
    }
