"""The share of a GPU's samples in which something holds its clocks back."""

from __future__ import annotations

from collections.abc import Collection

NOTABLE_SHARE = 0.05
"""From this share of the samples on it is worth a word that clocks were held back, or at the power limit."""


def share(samples: Collection[int], mask: int) -> float | None:
    """The share of samples with any of these reasons, 0 to 1; None without samples.

    Args:
        samples: The reasons of each sample: sums of `lorawatch.run.clock_reasons.ClockReason`.
        mask: The reasons asked for.
    """
    return sum(1 for reasons in samples if reasons & mask) / len(samples) if samples else None
