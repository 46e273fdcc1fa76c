import pytest

from srfa.coefficients import CoefficientBlock, Coefficients, FitConfig
from srfa.errors import FitError
from srfa.fit.explosion import explosive, refuse_explosion


def coefficients(values, names, units):
    n = len(values)
    block = CoefficientBlock(
        names=names,
        units=units,
        values=tuple(values),
        lower=(None,) * n,
        upper=(None,) * n,
        at_bound=(False,) * n,
        scales=(1.0,) * n,
    )
    return Coefficients(estimator="planted", blocks={"b": block}, converged=True, message="", config=FitConfig())


@pytest.mark.parametrize(
    ("value", "unit", "explodes"),
    [
        (1.5, "us", False),
        (-60.0, "us", False),
        (46_800.0, "us", True),
        (46_800.0, "1", False),
        (2_000_000.0, "1", True),
        (-2_000_000.0, "log(tokens)", True),
        (float("nan"), "us", True),
        (float("inf"), "1", True),
    ],
)
def test_a_term_beyond_any_hardware_fails_the_fit_by_name(value, unit, explodes):
    fitted = coefficients([1.0, value], ("fine", "layers"), ("us", unit))
    assert bool(explosive(fitted)) == explodes
    if not explodes:
        assert refuse_explosion(fitted) is fitted
        return
    with pytest.raises(FitError, match=r"b\.layers="):
        refuse_explosion(fitted)


def test_limits_of_a_term_or_a_unit_go_before_the_general_ones():
    fitted = coefficients([150.0, 150.0], ("a", "b"), ("us", "cycles"))
    assert len(explosive(fitted)) == 1
    assert explosive(fitted, largest={"b.a": 200.0}) == ()
    assert len(explosive(fitted, largest={"cycles": 100.0})) == 2
