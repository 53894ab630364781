"""Why a GPU's clocks are not higher: the driver's reasons, as journals and the history keep them, and their shares.

The numbers are NVML's clock event reasons (nvml.h, nvmlClocksEventReason…), a bit mask a sample.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

POWER_CAP = 0x04
"""The software power cap: how a GPU works at its power limit. It is no throttling, which is against the GPU's will."""
HELD_BACK: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
"""What throttles a GPU: heat, its hardware, the power brake, or the clocks of the GPUs that it is synchronised with."""
THROTTLED = sum(HELD_BACK)
"""All bits of `HELD_BACK`."""
NOTABLE_SHARE = 0.05
"""From this share of the samples on it is worth a word that clocks were held back, or at the power limit."""


def share(samples: Collection[int], mask: int) -> float | None:
    """The share of samples with any of these reasons, 0 to 1; None without samples.

    Args:
        samples: The reasons of each sample, bit masks.
        mask: The reasons asked for.
    """
    return sum(1 for reasons in samples if reasons & mask) / len(samples) if samples else None
