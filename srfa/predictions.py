"""Predictions beside what was measured: the input's rows plus one column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srfa.catalog import Catalog
from srfa.coefficients import Coefficients
from srfa.estimators import estimator_named
from srfa.metrics import Errors, Scored, errors
from srfa.observations import load_observations

PREDICTED = "predicted_step_time_us"


def predict_files(paths: Sequence[Path], coefficients: Coefficients, catalog: Catalog, out: Path) -> Errors:
    """Write the rows of all files, in their order, with ``predicted_step_time_us``; return the errors.

    Rows marked ``valid = false`` are kept with a null prediction and do not count.

    Raises
    ------
    ObservationsError
        A file cannot be used.
    UsageError
        The coefficients are of an unknown estimator.
    """
    observations = load_observations(paths)
    estimator = estimator_named(coefficients.estimator)
    predicted_us = estimator.predict(coefficients, estimator.features(observations, catalog))
    rows = pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")
    valid = pc.fill_null(rows["valid"], True).to_numpy() if "valid" in rows.column_names else np.ones(len(rows), bool)
    column = np.full(len(rows), np.nan)
    column[valid] = predicted_us
    if PREDICTED in rows.column_names:
        rows = rows.drop_columns([PREDICTED])
    _write(rows.append_column(PREDICTED, pa.array(column, mask=~valid)), out)
    return errors(Scored(observations.step_time_us, predicted_us, np.array(observations.job_ids, dtype=np.str_)))


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
