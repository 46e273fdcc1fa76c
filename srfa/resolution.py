"""Names in observations that nothing is known of, refused with the place they stand in before anything is computed."""

from __future__ import annotations

import numpy as np

from srfa.catalog import Catalog
from srfa.errors import InputError
from srfa.observations import Configuration, Observations
from srfa.routing import require_routing


def require_resolvable(observations: Observations, catalog: Catalog) -> None:
    """Do nothing where every GPU, model and routing of experts is known.

    Raises
    ------
    CatalogError
        A GPU or model is unknown or ambiguous; the text has file, column, first row and the number of rows.
    ObservationsError
        The routing of a mixture of experts is unknown; likewise.
    """
    for one in observations.configurations:
        for column in ("gpu", "model", "moe_routing"):
            try:
                _resolve(one, column, catalog)
            except InputError as error:
                bad = _rows_with(observations, column, getattr(one, column))
                if bad.any():
                    place = f"{observations.origin.file_of(bad)}: column {column} in {observations.origin.row_of(bad)}"
                    raise type(error)(f"{place}: {error}") from error


def _resolve(one: Configuration, column: str, catalog: Catalog) -> None:
    if column == "gpu":
        catalog.resolve_gpu(one.gpu)
    elif column == "model":
        catalog.resolve_model(one.model)
    elif catalog.resolve_model(one.model).is_moe:
        require_routing(one.moe_routing)


def _rows_with(observations: Observations, column: str, value: object) -> np.typing.NDArray[np.bool_]:
    has_value = np.array([getattr(one, column) == value for one in observations.configurations])
    return np.asarray(has_value[observations.configuration_index], dtype=bool)
