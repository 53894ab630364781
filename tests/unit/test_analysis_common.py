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
from lorawatch.analysis.windows import Span


def rank(begin: float, *durations: float) -> RankSteps:
    ends = []
    at = begin
    for took in durations:
        at += took
        ends.append(at)
    return RankSteps(ends, list(durations))


def window_of(*ranks: RankSteps) -> list[Span]:
    return common_window(ranks, join_s=0.02)


FAST = rank(10.0, *[1.0] * 10)  # 10 to 20 s
SLOW = rank(10.5, *[2.0] * 8)  # 10.5 to 26.5 s


def test_the_window_is_when_all_were_computing() -> None:
    assert window_of(FAST, SLOW) == [(10.5, 20.0)]
    assert window_of(FAST) == [(10.0, 20.0)]
    assert window_of(FAST, rank(20.0, 1.0)) == []  # one after the other
    assert window_of(FAST, RankSteps([], [])) == []
    assert window_of() == []


def test_while_one_evaluates_the_window_is_interrupted() -> None:
    pausing = RankSteps([11.0, 12.0, 15.0, 16.0, 19.0], [1.0] * 5)  # 12 to 14 and 16 to 18 s are no steps
    window = window_of(FAST, pausing)
    assert window == [(10.0, 12.0), (14.0, 16.0), (18.0, 19.0)]
    assert amount_within(pausing, [7.0] * 5, window) == pytest.approx(35)
    assert FAST.touching(window) == [0, 1, 4, 5, 8]
    assert summed_rate([FAST, pausing], [[10.0] * 10, [7.0] * 5], window).value == pytest.approx(17)
    late = RankSteps([19.5, 20.5], [3.0, 1.0])  # 16.5 to 20.5 s
    window = window_of(FAST, pausing, late)
    assert window == [(18.0, 19.0)]
    assert late.shares(window) == [pytest.approx(1 / 3), 0.0]
    assert SLOW.shares([(11.0, 12.0), (12.25, 13.0), (14.0, 14.5)]) == [0.625, 0.5, *[0.0] * 6]


def test_a_step_that_an_edge_cuts_counts_by_its_share_of_time() -> None:
    edges = [(10.5, 20.0)]
    assert FAST.shares(edges)[:2] == [0.5, 1.0]
    assert amount_within(FAST, [100.0] * 10, edges) == pytest.approx(950)
    # 10.5 to 18.5 in whole, 18.5 to 20 of 18.5 to 20.5
    assert amount_within(SLOW, [300.0] * 8, edges) == pytest.approx(4 * 300 + 0.75 * 300)
    assert SLOW.touching(edges) == [0, 1, 2, 3, 4]
    assert FAST.touching([(30.0, 31.0)]) == []


def test_rates_add_up_and_their_noise_adds_in_quadrature() -> None:
    uneven = rank(0.0, *[1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.0, 1.0])
    other = rank(0.0, *[0.5, 0.6, 0.5, 0.4, 0.5, 0.5, 0.7, 0.3, 0.5, 0.5, 0.5, 0.6, 0.4, 0.5, 0.5, 0.5])
    window = [(0.0, 8.0)]
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
    found = summed_rate([rank(0.0, *[1.0] * 8), rank(0.0, *[4.0] * 2)], [[1.0] * 8, [1.0] * 2], [(0.0, 8.0)])
    assert (found.value, found.ci95) == (pytest.approx(1.25), None)


def test_the_mean_of_the_steps_own_rates_is_summed_over_ranks() -> None:
    found = summed_mean_step_rate([rank(0.0, 1.0, 3.0), rank(0.0, 2.0, 2.0)], [[6.0] * 2, [6.0] * 2], [(0.0, 4.0)])
    assert found == pytest.approx((6 + 2) / 2 + 3)
