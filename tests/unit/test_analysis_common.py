"""What ranks that train separately did in the time common to all, against figures computed by hand."""

from __future__ import annotations

import pytest

from lorawatch.analysis.common import (
    RankSteps,
    amount_within,
    common_window,
    summed_mean_step_rate,
    summed_rate,
)
from lorawatch.analysis.throughput import batch_means_interval95


def rank(begin: float, *durations: float) -> RankSteps:
    ends = []
    at = begin
    for took in durations:
        at += took
        ends.append(at)
    return RankSteps(ends, list(durations))


FAST = rank(10.0, *[1.0] * 10)  # 10 to 20 s
SLOW = rank(10.5, *[2.0] * 8)  # 10.5 to 26.5 s


def test_the_window_is_when_all_were_computing() -> None:
    assert common_window([FAST, SLOW]) == (10.5, 20.0)
    assert common_window([FAST]) == (10.0, 20.0)
    assert common_window([FAST, rank(20.0, 1.0)]) is None  # one after the other
    assert common_window([FAST, RankSteps([], [])]) is None
    assert common_window([]) is None


def test_a_step_that_an_edge_cuts_counts_by_its_share_of_time() -> None:
    assert FAST.shares((10.5, 20.0))[:2] == [0.5, 1.0]
    assert amount_within(FAST, [100.0] * 10, (10.5, 20.0)) == pytest.approx(950)
    # 10.5 to 18.5 in whole, 18.5 to 20 of 18.5 to 20.5
    assert amount_within(SLOW, [300.0] * 8, (10.5, 20.0)) == pytest.approx(4 * 300 + 0.75 * 300)
    assert list(SLOW.touching((10.5, 20.0))) == [0, 1, 2, 3, 4]
    assert list(FAST.touching((30.0, 31.0))) == []


def test_rates_add_up_and_their_noise_adds_in_quadrature() -> None:
    uneven = rank(0.0, *[1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.0, 1.0])
    other = rank(0.0, *[0.5, 0.6, 0.5, 0.4, 0.5, 0.5, 0.7, 0.3, 0.5, 0.5, 0.5, 0.6, 0.4, 0.5, 0.5, 0.5])
    window = (0.0, 8.0)
    found = summed_rate([uneven, other], [[8.0] * 8, [4.0] * 16], window)
    assert found.value == pytest.approx((8 * 8 + 4 * 16) / 8)
    halves = [
        batch_means_interval95([8.0] * 8, uneven.durations_s),
        batch_means_interval95([4.0] * 16, other.durations_s),
    ]
    assert halves[0] is not None
    assert halves[1] is not None
    assert found.ci95 == pytest.approx((halves[0] ** 2 + halves[1] ** 2) ** 0.5)
    assert found.ci95 > max(halves[0], halves[1])


def test_too_few_steps_of_one_rank_leave_the_interval_out_and_not_the_rate() -> None:
    found = summed_rate([rank(0.0, *[1.0] * 8), rank(0.0, *[4.0] * 2)], [[1.0] * 8, [1.0] * 2], (0.0, 8.0))
    assert (found.value, found.ci95) == (pytest.approx(1.25), None)


def test_the_mean_of_the_steps_own_rates_is_summed_over_ranks() -> None:
    found = summed_mean_step_rate([rank(0.0, 1.0, 3.0), rank(0.0, 2.0, 2.0)], [[6.0] * 2, [6.0] * 2], (0.0, 4.0))
    assert found == pytest.approx((6 + 2) / 2 + 3)
