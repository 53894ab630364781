"""Figures as people read them. A missing figure is an em dash, never 0."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "—"


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """`12,345.6 W`."""
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}"


def hanging(first: str, text: str) -> str:
    """A text of one line or more behind what begins it, its further lines below its first."""
    return first + text.replace("\n", "\n" + " " * len(first))


def rank_words(ranks: Sequence[int]) -> str:
    """`rank 2`, `ranks 0, 2`, `ranks 0–7`; empty for none. Of ranks in order."""
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]}–{ranks[-1]}"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else ""


def gib(value: float | None) -> str:
    """Bytes as GiB, one digit."""
    return MISSING if value is None else f"{value / 2**30:.1f} GiB"


def duration(seconds: float | None) -> str:
    """`0:07`, `1:02:03`, `3 d 4 h`."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole >= 172_800:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def long_duration(seconds: float | None) -> str:
    """Three figures and a unit, for estimates: `45 s`, `30.0 min`, `1.30 h`, `5.40 d`."""
    if seconds is None:
        return MISSING
    for unit, size, until in (("s", 1.0, 90.0), ("min", 60.0, 5400.0), ("h", 3600.0, 172_800.0)):
        if seconds < until:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 86_400)} d"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
