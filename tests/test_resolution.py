import pytest

from srfa.errors import CatalogError, ObservationsError
from srfa.resolution import require_resolvable
from tests.steps import catalog, observations, step

CATALOG = catalog()
MOE = "mistralai/Mixtral-8x7B-v0.1"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"gpu": "h10"}, CatalogError, r"column gpu in row 1 \(2 such rows\): unknown GPU 'h10'; did you mean"),
        ({"model": "lama-3.1-8b"}, CatalogError, r"column model in row 1 \(2 such rows\): unknown model"),
        (
            {"model": MOE, "moe_routing": "power_law_x"},
            ObservationsError,
            r"column moe_routing in row 1 \(2 such rows\): moe_routing='power_law_x' is unknown; use",
        ),
    ],
)
def test_an_unknown_name_is_told_with_its_column_first_row_and_count(change, error, said):
    rows = [step(moe_routing=None), step(**change), step(), step(**change, tensor_parallel_size=2)]
    with pytest.raises(error, match=rf"^observations: {said}"):
        require_resolvable(observations(rows), CATALOG)


def test_known_names_pass_and_the_routing_of_a_dense_model_says_nothing():
    rows = [step(moe_routing="as it likes"), step(model=MOE, moe_routing="power_law_1.2"), step(gpu="H100-SXM-80GB")]
    require_resolvable(observations(rows), CATALOG)
