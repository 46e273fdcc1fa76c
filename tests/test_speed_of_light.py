import pytest

from srfa.errors import DataInvalidError
from srfa.speed_of_light import possible_steps
from tests.steps import catalog, observations, step

CATALOG = catalog()


def test_possible_labels_pass_untouched():
    seen = observations([step() for _ in range(5)])
    kept, refused = possible_steps(seen, CATALOG)
    assert (kept.n_steps, refused) == (5, 0)


def test_a_single_torn_reading_is_left_out():
    kept, refused = possible_steps(observations([step() for _ in range(200)] + [step(step_time_us=700.0)]), CATALOG)
    assert (kept.n_steps, refused) == (200, 1)


def test_labels_from_the_wrong_clock_are_refused_by_job():
    rows = [step(job_id="good")] * 50 + [step(job_id="bad", step_time_us=700.0)] * 5
    with pytest.raises(
        DataInvalidError, match=r"^observations: job bad: 100% of its steps are faster than light: 700.0 us where"
    ):
        possible_steps(observations(rows), CATALOG)


def test_milliseconds_taken_for_microseconds_are_refused():
    with pytest.raises(DataInvalidError, match="wrong unit"):
        possible_steps(observations([step(step_time_us=15.0)] * 3), CATALOG)
