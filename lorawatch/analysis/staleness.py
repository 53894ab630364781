"""When a reading is too old to be believed."""

from __future__ import annotations

STALE_S = 3.0
"""Readings come at least once a second; a network's file system may show them this much later."""


def stale_age(age_s: float | None) -> float | None:
    """The age of a stale reading, seconds; None for one that is fresh, and where there is none yet."""
    return age_s if age_s is not None and age_s >= STALE_S else None
