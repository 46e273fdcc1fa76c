import numpy as np
import pytest
from scipy.optimize import Bounds, lsq_linear

from srfa.fit.descent import Model, descend

FREE = Bounds(np.full(3, -np.inf), np.full(3, np.inf))


def least_squares(seed):
    """A random linear problem: its model at any point, and its matrices."""
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(20, 3)), rng.normal(size=20)

    def model_at(point):
        residual = matrix @ point - target
        return Model(0.5 * float(residual @ residual), matrix.T @ residual, matrix.T @ matrix)

    return model_at, matrix, target


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_problem_is_solved_within_its_bounds(seed):
    model_at, matrix, target = least_squares(seed)
    bounds = Bounds(np.zeros(3), np.full(3, 0.1))
    found, _ = descend(model_at, np.full(3, 0.05), bounds, max_steps=50)
    assert found == pytest.approx(lsq_linear(matrix, target, (0.0, 0.1)).x, abs=1e-5)


def test_a_start_outside_the_bounds_is_brought_inside():
    model_at, _, _ = least_squares(0)
    found, _ = descend(model_at, np.full(3, 9.0), Bounds(np.zeros(3), np.ones(3)), max_steps=1)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_a_curved_valley_is_followed_without_ever_going_up():
    values = []

    def model_at(point):  # Rosenbrock's function as a sum of two squares
        x, y = point
        residual, slopes = np.array([10.0 * (y - x * x), 1.0 - x]), np.array([[-20.0 * x, 10.0], [-1.0, 0.0]])
        values.append(0.5 * float(residual @ residual))
        return Model(values[-1], slopes.T @ residual, slopes.T @ slopes + 1e-12 * np.eye(2))

    bounds = Bounds(np.full(2, -5.0), np.full(2, 5.0))
    found, evaluations = descend(model_at, np.array([-1.2, 1.0]), bounds, max_steps=200)
    assert found == pytest.approx([1.0, 1.0], abs=1e-4)
    assert evaluations == len(values) < 60
    assert model_at(found).value == min(values)


def test_one_step_is_no_longer_than_the_model_can_be_trusted():
    model_at, _, _ = least_squares(0)
    far = np.full(3, 40.0)
    found, _ = descend(model_at, far, FREE, max_steps=2)
    assert np.abs(found - far).max() <= 1.0
