"""Ranks that train separately at the same time: what they did together while every one of them was computing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.analysis.interval import Figure, total
from lorawatch.analysis.throughput import batch_means_interval95, mean_step_rate
from lorawatch.analysis.windows import Span


@dataclass(frozen=True, slots=True)
class RankSteps:
    """A rank's measured steps in their order.

    Attributes:
        ends_s: When each ended, seconds of a clock that all ranks share; shape (steps,).
        durations_s: How long each took; shape (steps,).
    """

    ends_s: Sequence[float]
    durations_s: Sequence[float]

    @property
    def span(self) -> Span | None:
        """From the first step's start to the last one's end; None without a step."""
        return (self.ends_s[0] - self.durations_s[0], self.ends_s[-1]) if self.ends_s else None

    def touching(self, window: Span) -> range:
        """Numbers of the steps that lie in the window, wholly or in part."""
        inside = [i for i, share in enumerate(self.shares(window)) if share > 0]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    def shares(self, window: Span) -> list[float]:
        """Each step's share of time inside the window, 0 to 1; shape (steps,)."""
        begin, end = window
        return [
            max(min(at, end) - max(at - took, begin), 0.0) / took if took > 0 else float(begin <= at <= end)
            for at, took in zip(self.ends_s, self.durations_s, strict=True)
        ]


def common_window(ranks: Sequence[RankSteps]) -> Span | None:
    """The time in which all ranks were computing: from the latest start of a rank's first measured step to the earliest
    end of a rank's last one. Before and after it some had the machine's power, heat and memory to themselves.

    Returns:
        None where a rank has no step, or no moment is common to all.
    """
    spans = [rank.span for rank in ranks]
    known = [span for span in spans if span is not None]
    if not known or len(known) < len(spans):
        return None
    begin, end = max(b for b, _ in known), min(e for _, e in known)
    return (begin, end) if end > begin else None


def amount_within(rank: RankSteps, amounts: Sequence[float], window: Span) -> float:
    """What a rank did inside the window; of a step that an edge cuts, its share by time.

    Args:
        amounts: What each step did, such as tokens; shape (steps,).
    """
    return math.fsum(share * amount for share, amount in zip(rank.shares(window), amounts, strict=True) if share > 0)


def summed_rate(ranks: Sequence[RankSteps], amounts: Sequence[Sequence[float]], window: Span) -> Figure:
    """All ranks' amount a second over the window.

    Its interval comes from each rank's own steps in the window, by batch means: the ranks work apart, so that their half
    widths add in quadrature. A rank with too few steps leaves it out.

    Args:
        amounts: What each rank's steps did; shape (ranks, steps of that rank).
    """
    done = math.fsum(amount_within(r, a, window) for r, a in zip(ranks, amounts, strict=True))
    noise = total([Figure(0.0, _interval(r, a, window)) for r, a in zip(ranks, amounts, strict=True)]).ci95
    return Figure(done / (window[1] - window[0]), noise)


def summed_mean_step_rate(ranks: Sequence[RankSteps], amounts: Sequence[Sequence[float]], window: Span) -> float | None:
    """The sum over the ranks of the mean of their steps' own rates, of the steps that lie in the window."""
    rates = []
    for rank, amount in zip(ranks, amounts, strict=True):
        inside = rank.touching(window)
        rates.append(mean_step_rate([amount[i] for i in inside], [rank.durations_s[i] for i in inside]))
    known = [r for r in rates if r is not None]
    return math.fsum(known) if known and len(known) == len(rates) else None


def _interval(rank: RankSteps, amounts: Sequence[float], window: Span) -> float | None:
    inside = rank.touching(window)
    return batch_means_interval95([amounts[i] for i in inside], [rank.durations_s[i] for i in inside])
