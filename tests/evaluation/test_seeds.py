"""Means over seeds, against SciPy's Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from metalearn.errors import SettingError
from metalearn.evaluation.seeds import mean_over_seeds, student_quantile


@pytest.mark.parametrize("degrees", [*range(1, 13), 30, 100, 5000])
def test_the_quantile_is_that_of_students_t(degrees: int) -> None:
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=3.1e-4)


def test_the_interval_is_that_of_a_t_test() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 6).tolist()
    found = mean_over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean - found.interval95 == pytest.approx(low, abs=1e-5)
    assert found.mean + found.interval95 == pytest.approx(high, abs=1e-5)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


def test_one_run_has_no_spread_and_none_no_mean() -> None:
    mean, half, deviation = mean_over_seeds([0.5])
    assert mean == 0.5 and math.isnan(half) and math.isnan(deviation)
    with pytest.raises(SettingError, match="at least one run is needed"):
        mean_over_seeds([])
