"""Rates, intervals and windows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def noisy_steps(runs: int, steps: int, correlation: float, seed: int) -> np.ndarray:
    """Step times of 1 s ± 5% whose noise is autoregressive of order 1, in its steady state; shape (runs, steps)."""
    source = np.random.default_rng(seed)
    fresh = 0.05 * np.sqrt(1 - correlation**2) * source.standard_normal((steps, runs))
    fresh[0] /= np.sqrt(1 - correlation**2)
    for step in range(1, steps):
        fresh[step] += correlation * fresh[step - 1]
    return 1 + fresh.T


@pytest.mark.parametrize("steps", [59, 200, 1000])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_the_interval_covers_the_true_rate_in_93_to_97_of_100_runs(steps: int, correlation: float) -> None:
    amounts, hits = [1024.0] * steps, 0
    for durations in noisy_steps(2000, steps, correlation, seed=7).tolist():
        half = batch_means_interval95(amounts, durations)
        assert half is not None
        hits += abs(1024 * steps / sum(durations) - 1024) <= half
    assert 0.93 <= hits / 2000 <= 0.97


def test_the_interval_covers_where_steps_differ_in_tokens() -> None:
    source, hits = random.Random(2), 0
    for _ in range(2000):
        amounts = [float(source.randrange(200, 1024)) for _ in range(59)]
        durations = [0.1 + a / 1000 + source.gauss(0, 0.02) for a in amounts]
        half = batch_means_interval95(amounts, durations)
        assert half is not None
        hits += abs(sum(amounts) / sum(durations) - 611.5 / 0.7115) <= half
    assert 0.93 <= hits / 2000 <= 0.97


def test_runs_that_are_short_for_their_memory_are_covered_as_the_docstring_says() -> None:
    for steps, correlation, share in [(59, 0.8, 0.91), (59, 0.9, 0.82), (8, 0.6, 0.90), (1000, 0.9, 0.94)]:
        hits = 0
        for durations in noisy_steps(2000, steps, correlation, seed=8).tolist():
            half = batch_means_interval95([1.0] * steps, durations)
            assert half is not None
            hits += abs(steps / sum(durations) - 1) <= half
        assert hits / 2000 == pytest.approx(share, abs=0.02)


def test_more_steps_narrow_the_interval() -> None:
    widths = []
    for steps in (20, 59, 200, 1000, 5000):
        halves = [batch_means_interval95([1.0] * steps, d) for d in noisy_steps(50, steps, 0.3, seed=9).tolist()]
        widths.append(sum(h for h in halves if h is not None) / 50)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(widths[-2] / 5**0.5, rel=0.15)


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=300), st.floats(0.1, 1e6), st.floats(1e-3, 1e3))
def test_the_interval_goes_with_its_units(durations: list[float], tokens: float, slower: float) -> None:
    half = batch_means_interval95([1.0] * len(durations), durations)
    other = batch_means_interval95([tokens] * len(durations), [slower * d for d in durations])
    assert half is not None
    assert other == pytest.approx(half * tokens / slower, rel=1e-6, abs=1e-9 * tokens / slower)


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=200))
def test_the_interval_does_not_care_for_the_direction_of_time(durations: list[float]) -> None:
    if len(durations) > 128 and len(durations) % 128:
        durations = durations[:128]  # batches of unequal length lie elsewhere when counted from the other end
    forth = batch_means_interval95([1.0] * len(durations), durations)
    assert batch_means_interval95([1.0] * len(durations), durations[::-1]) == pytest.approx(forth, abs=1e-9)


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
