"""Tokens a second: of a window, of the steps, with a 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom (any table of the distribution's quantiles).
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student_t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t distribution.

    Past 30 degrees of freedom by the first terms of the Cornish–Fisher expansion (Abramowitz and Stegun 26.7.5), right
    to four digits there.

    Raises:
        ValueError: Fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError("an interval needs at least one degree of freedom")
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def mean_interval95(values: Sequence[float]) -> float | None:
    """Half width of the 95% interval of the mean of independent values; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1)
    return student_t95(count - 1) * math.sqrt(variance / count)


def batch_means_interval95(amounts: Sequence[float], durations_s: Sequence[float], batches: int = 10) -> float | None:
    """Half width of the 95% interval of a rate, from batch means (Law, Simulation Modeling and Analysis, 9.5.3).

    Neighbouring steps are alike (clocks, heat, lengths of examples), so that single steps are no independent draws; the
    rates of consecutive batches nearly are.

    Args:
        amounts: What each step did, such as tokens; shape (steps,).
        durations_s: How long each took; shape (steps,).
        batches: How many; fewer where a batch would have less than two steps.

    Returns:
        Half width in amount a second; None for fewer than four steps.
    """
    count = len(amounts)
    batches = min(batches, count // 2)
    if batches < 2:
        return None
    rates = []
    for number in range(batches):
        begin, end = number * count // batches, (number + 1) * count // batches
        seconds = math.fsum(durations_s[begin:end])
        if seconds <= 0:
            return None
        rates.append(math.fsum(amounts[begin:end]) / seconds)
    return mean_interval95(rates)


def mean_step_rate(amounts: Sequence[float], durations_s: Sequence[float]) -> float | None:
    """Mean of the steps' own rates, as the Exxact benchmark reports it; None without a step that took time."""
    rates = [a / d for a, d in zip(amounts, durations_s, strict=True) if d > 0]
    return math.fsum(rates) / len(rates) if rates else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which a share of the values lies, by linear interpolation (Hyndman and Fan 1996, type 7).

    Args:
        share: 0 to 1.
    """
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
