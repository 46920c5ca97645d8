"""Intervals over seeds, against scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autopeft.transfer.interval import t_interval, t_quantile


@pytest.mark.parametrize("freedom", [*range(1, 31), 99, 100])
def test_the_quantile_is_that_of_student(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_the_interval_is_that_of_scipy(values):
    low, high = t_interval(values)
    error = stats.sem(values)
    mean = sum(values) / len(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error > 1e-9 else (mean, mean)
    assert (low, high) == pytest.approx(expected, abs=1e-7)


def test_one_seed_has_no_interval():
    assert t_interval([0.5]) is None
