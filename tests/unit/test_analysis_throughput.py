"""Rates, intervals and windows."""

from __future__ import annotations

import random

import pytest

from lorawatch.analysis.mfu import mfu, plausible
from lorawatch.analysis.throughput import (
    batch_means_interval95,
    mean_interval95,
    mean_step_rate,
    percentile,
    student_t95,
)
from lorawatch.analysis.windows import length, union


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (9, 2.262), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)]
)
def test_student_t_has_the_table_values(degrees: int, value: float) -> None:
    assert student_t95(degrees) == pytest.approx(value, abs=6e-4)


def test_an_interval_needs_two_values_and_a_degree_of_freedom() -> None:
    assert mean_interval95([1.0]) is None
    assert batch_means_interval95([1, 1, 1], [1, 1, 1]) is None
    with pytest.raises(ValueError, match="degree"):
        student_t95(0)


def test_the_interval_covers_the_true_rate_19_times_in_20() -> None:
    source = random.Random(1)
    hits = 0
    for _ in range(400):
        durations = [source.gauss(1.0, 0.1) for _ in range(60)]
        half = batch_means_interval95([1000.0] * 60, durations)
        assert half is not None
        hits += abs(60_000 / sum(durations) - 1000.0) <= half
    assert 0.91 <= hits / 400 <= 0.99


def test_steady_steps_have_no_interval_to_speak_of() -> None:
    assert batch_means_interval95([100.0] * 20, [0.5] * 20) == pytest.approx(0)


def test_mean_of_rates_is_not_the_rate_of_the_window() -> None:
    assert mean_step_rate([100, 100], [1.0, 2.0]) == pytest.approx(75)
    assert mean_step_rate([], []) is None


def test_percentiles_interpolate() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == pytest.approx(2.5)
    assert percentile(list(range(101)), 0.95) == pytest.approx(95)
    assert percentile([], 0.5) is None


def test_windows_join_close_neighbours_only() -> None:
    spans = union([(2.0, 3.0), (0.0, 1.0), (1.01, 2.0), (5.0, 6.0), (5.5, 5.6)], join_s=0.02)
    assert spans == [(0.0, 3.0), (5.0, 6.0)]
    assert length(spans) == pytest.approx(4.0)


def test_mfu_of_the_published_model() -> None:
    value = mfu(30.46e9, 6979, 989.4e12)
    assert value == pytest.approx(0.2149, abs=1e-4)
    assert plausible(value) is True
    assert plausible(0.8) is False
    assert mfu(None, 6979, 989.4e12) is None
    assert mfu(30.46e9, 6979, None) is None
    assert plausible(None) is None
