"""Ranks that train separately at the same time: their total rate while all of them were computing."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.analysis.interval import Figure, total
from lorawatch.analysis.missing import whole_sum
from lorawatch.analysis.throughput import batch_means_interval95, mean_step_rate, rate
from lorawatch.analysis.windows import Span, common, length, union


@dataclass(frozen=True, slots=True)
class RankSteps:
    """A rank's measured steps in their order.

    Attributes:
        ends_s: When each ended, seconds of a clock that all ranks share; shape (steps,).
        durations_s: How long each took; shape (steps,).
    """

    ends_s: Sequence[float]
    durations_s: Sequence[float]

    def touching(self, window: Sequence[Span]) -> list[int]:
        """Indices of the steps that lie in the window, wholly or in part."""
        return [i for i, share in enumerate(self.shares(window)) if share > 0]

    def shares(self, window: Sequence[Span]) -> list[float]:
        """Each step's share of time inside the window, 0 to 1; shape (steps,)."""
        ends = [end for _, end in window]
        shares = []
        for at, took in zip(self.ends_s, self.durations_s, strict=True):
            inside = 0.0
            span = bisect_right(ends, at - took)  # those before it end before the step begins
            while span < len(window) and window[span][0] < at:
                inside += min(at, window[span][1]) - max(at - took, window[span][0])
                span += 1
            shares.append(inside / took if took > 0 else 0.0)
        return shares


def common_window(ranks: Sequence[RankSteps], *, join_s: float, pauses: Sequence[float] = ()) -> list[Span]:
    """The time in which all ranks were computing a measured step. Before and after it, and while one evaluates or saves,
    the others have the machine's power, heat and memory to themselves.

    Args:
        join_s, pauses: Which gaps between a rank's steps do not count as a pause, as in `union`.

    Returns:
        In order, without overlap; empty where a rank has no step, or no moment is common to all.
    """
    spans = ([(at - took, at) for at, took in zip(r.ends_s, r.durations_s, strict=True)] for r in ranks)
    return common(union(steps, join_s=join_s, pauses=pauses) for steps in spans)


def amount_within(rank: RankSteps, amounts: Sequence[float], window: Sequence[Span]) -> float:
    """A rank's amount inside the window; a step that an edge cuts counts by its share of time.

    Args:
        amounts: What each step did, such as tokens; shape (steps,).
    """
    return math.fsum(share * amount for share, amount in zip(rank.shares(window), amounts, strict=True) if share > 0)


def summed_rate(ranks: Sequence[RankSteps], amounts: Sequence[Sequence[float]], window: Sequence[Span]) -> Figure:
    """All ranks' amount a second over the window.

    Its interval comes from each rank's own steps in the window, by batch means: the ranks work independently, so that their
    half widths add in quadrature. A rank with too few steps leaves it out.

    Args:
        amounts: What each rank's steps did; shape (ranks, steps of that rank).

    Raises:
        ValueError: The window takes no time.
    """
    value = rate(math.fsum(amount_within(r, a, window) for r, a in zip(ranks, amounts, strict=True)), length(window))
    if value is None:
        raise ValueError("a rate needs a window that takes time")
    noise = total([Figure(0.0, _interval(r, a, window)) for r, a in zip(ranks, amounts, strict=True)]).ci95
    return Figure(value, noise)


def summed_mean_step_rate(
    ranks: Sequence[RankSteps], amounts: Sequence[Sequence[float]], window: Sequence[Span]
) -> float | None:
    """The sum over the ranks of the mean of their steps' own rates, of the steps that lie in the window."""
    rates = []
    for rank, amount in zip(ranks, amounts, strict=True):
        inside = rank.touching(window)
        rates.append(mean_step_rate([amount[i] for i in inside], [rank.durations_s[i] for i in inside]))
    return whole_sum(rates)


def _interval(rank: RankSteps, amounts: Sequence[float], window: Sequence[Span]) -> float | None:
    inside = rank.touching(window)
    return batch_means_interval95([amounts[i] for i in inside], [rank.durations_s[i] for i in inside])
