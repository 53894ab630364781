"""Printed figures: the value of a text, and its rounding."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+"
_PLAIN = re.compile(rf"[~≈]?\s*(?P<number>{_NUMBER})\s*(?P<unit>\D*)")
_TIME_PART = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>[a-z]+)\.?,?")
_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
    **dict.fromkeys(("week", "weeks"), 604_800.0),
}
_UNITS = ("", "×", "x", "%", "w", "tok/s", "tok/s/w", "tok/j")
_SLACK = 1e-9  # of the value: a figure exactly between two printed ones agrees with both


@dataclass(frozen=True)
class Cell:
    """A printed figure.

    Attributes:
        value: The figure; seconds where it is a time.
        half_unit: Half a unit of the last printed digit, in the value's unit: the largest rounding error.
    """

    value: float
    half_unit: float


def number(text: str, units: tuple[str, ...] = _UNITS) -> Cell:
    """Read `10,717`, `1.00`, `97.8%`, `~1.9×`.

    Args:
        units: What may follow the figure, in small letters; `""` for nothing.

    Raises:
        ValueError: The text is no number, or another unit follows it.
    """
    match = _PLAIN.fullmatch(text.strip())
    if match is None or match["unit"].strip().lower() not in units:
        raise ValueError(text)
    return _cell(match["number"])


def seconds(text: str) -> Cell:
    """Read a time: `~1.3 hr`, `~30 min`, `5.4 days`, `1 h 30 min`; the last part sets the rounding.

    Raises:
        ValueError: The text is no time.
    """
    rest = text.strip().lstrip("~≈").lower()
    total = half_unit = 0.0
    while rest.strip():
        match = _TIME_PART.match(rest)
        if match is None or match["unit"] not in _SECONDS:
            raise ValueError(text)
        part = _cell(match["number"])
        total += part.value * _SECONDS[match["unit"]]
        half_unit = part.half_unit * _SECONDS[match["unit"]]
        rest = rest[match.end() :]
    if not half_unit:
        raise ValueError(text)
    return Cell(total, half_unit)


def compare_cell(printed: str, computed: float, spread: float = 0.0) -> bool:
    """Whether a printed figure and a computed one agree within the rounding of the last printed digit.

    A `~` changes nothing: it says that the figure was rounded, which holds for any printed figure.

    Args:
        printed: A figure, or a time; a time is compared in seconds.
        computed: In the printed figure's unit; seconds for a time.
        spread: By how much the computed figure may be off, since what it was computed from was rounded too.

    Raises:
        ValueError: The text is no figure.
    """
    try:
        cell = number(printed)
    except ValueError:
        cell = seconds(printed)
    return abs(cell.value - computed) <= cell.half_unit + spread + _SLACK * abs(computed)


def _cell(text: str) -> Cell:
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    last = int(exponent or 0) - len(digits.partition(".")[2])  # the last digit counts tens to this power
    return Cell(float(f"{digits}e{exponent or 0}"), float(f"5e{last - 1}"))


def compact(value: float, like: str) -> str:
    """A computed figure in the printed one's digits and unit: `1.94` like `1.93`, `1.9 hr` like `~1.5 hr`."""
    try:
        cell, unit, suffix = number(like), 1.0, ""
    except ValueError:
        parts = list(_TIME_PART.finditer(like.lower()))
        suffix = parts[0]["unit"]
        unit = _SECONDS[suffix]
        cell = _cell(parts[0]["number"]) if len(parts) == 1 else Cell(0, 0.05)
    decimals = max(0, round(-math.log10(2 * cell.half_unit)))
    return f"{value / unit:,.{decimals}f}{' ' if suffix else ''}{suffix}"
