"""Figures with a 95% interval, and the arithmetic that keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.analysis.throughput import mean_interval95


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and the half width of its 95% interval, in the figure's own unit; None where the noise is not known."""

    value: float
    ci95: float | None

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.ci95 is None else self.value - self.ci95

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.ci95 is None else self.value + self.ci95

    @property
    def relative(self) -> float | None:
        """Half width as a share of the value, 0.01 for ±1%; None without an interval and for a value of 0."""
        return None if self.ci95 is None or not self.value else self.ci95 / abs(self.value)


def ratio(a: Figure, b: Figure) -> Figure:
    """One figure over another that was measured independently.

    First-order propagation of independent errors: relative half widths add in quadrature (JCGM 100:2008, 5.1.6). A
    figure over itself, the same object, is exactly 1.

    Raises:
        ValueError: The divisor is 0.
    """
    if a is b:
        return Figure(1.0, 0.0)
    if not b.value:
        raise ValueError("a ratio needs a divisor other than 0")
    value = a.value / b.value
    if a.ci95 is None or b.ci95 is None:
        return Figure(value, None)
    return Figure(value, math.hypot(a.ci95, value * b.ci95) / abs(b.value))


def scaled(figure: Figure, factor: float) -> Figure:
    """A figure times an exact number."""
    return Figure(figure.value * factor, None if figure.ci95 is None else figure.ci95 * abs(factor))


def total(figures: Sequence[Figure]) -> Figure:
    """The sum of independent figures, such as of GPUs that work independently; half widths add in quadrature."""
    return Figure(math.fsum(f.value for f in figures), quadrature(*(f.ci95 for f in figures)))


def pooled(runs: Sequence[Figure]) -> Figure:
    """Repeats of one measurement as one figure.

    Two or more: their mean, with Student's t interval across them, which also covers the differences from run to run that
    a run's own interval cannot show. One: itself.

    Raises:
        ValueError: No run.
    """
    if not runs:
        raise ValueError("no run to pool")
    if len(runs) == 1:
        return runs[0]
    values = [run.value for run in runs]
    return Figure(math.fsum(values) / len(values), mean_interval95(values))


def quadrature(*half_widths: float | None) -> float | None:
    """The half width of a sum of independent terms; None where one is not known."""
    known = [h for h in half_widths if h is not None]
    return math.hypot(*known) if len(known) == len(half_widths) else None
