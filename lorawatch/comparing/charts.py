"""Charts as SVG text: throughput by GPU count with its ideal line, and bars; no script, no font, nothing fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_ROOM = 50
_DASHES = {"measured": "", "published": "6 4", "extrapolated": "2 4", "simulated": "1 3"}


@dataclass(frozen=True, slots=True)
class Dot:
    """A point: GPUs, value, and the half width of its interval."""

    x: int
    y: float
    half: float | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line of the chart: one SKU from one source."""

    name: str
    dots: tuple[Dot, ...]


def lines(
    title: str, series: Sequence[Series], *, ideal: bool = False, least: float | None = 0.0, unit: str = ""
) -> str:
    """A line a series over the number of GPUs.

    Args:
        ideal: Add n × one GPU of each series as a thin line.
        least: Where the axis begins; None: a little below the lowest value.
    """
    width, height, left, right, top, bottom = 560, 320, 64, 16, 34, 44
    drawn = [(COLOURS[i % len(COLOURS)], s) for i, s in enumerate(series) if s.dots]
    series = [s for _, s in drawn]
    counts = sorted({d.x for s in series for d in s.dots})
    if not counts:
        return ""
    high = max(d.y + (d.half or 0.0) for s in series for d in s.dots)
    low = min(d.y - (d.half or 0.0) for s in series for d in s.dots)
    if ideal:
        high = max([high, *(s.dots[0].y * s.dots[-1].x for s in series if s.dots[0].x == 1)])
    marks = ticks(least if least is not None else low - (high - low or abs(high)) * 0.15, high)
    x_low, x_high = min(1, counts[0]) - 0.2, max(counts[-1], 2) + 0.2

    def x(count: float) -> float:
        return left + (count - x_low) / (x_high - x_low) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (height - top - bottom)

    parts = [_frame(title, width, height)]
    for tick in marks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.6g}{unit}</text>'
        )
    parts += [
        f'<text class="tick" x="{x(count):.1f}" y="{height - bottom + 18}" text-anchor="middle">{count}</text>'
        for count in counts
    ]
    parts.append(f'<text class="tick" x="{(left + width) / 2:.0f}" y="{height - 8}" text-anchor="middle">GPUs</text>')
    for colour, one in drawn:
        if ideal and one.dots[0].x == 1:
            first, last = one.dots[0], one.dots[-1].x
            parts.append(
                f'<line class="ideal" stroke="{colour}" x1="{x(1):.1f}" y1="{y(first.y):.1f}" x2="{x(last):.1f}" '
                f'y2="{y(first.y * last):.1f}"/>'
            )
        parts += _curve(one, colour, x, y, marks[0])
    parts.append("</svg>")
    return "\n".join(parts)


def _curve(
    one: Series, colour: str, x: Callable[[float], float], y: Callable[[float], float], floor: float
) -> list[str]:
    """A series' lines, intervals and dots; no interval goes below the axis."""
    parts = []
    for before, dot in zip(one.dots, one.dots[1:], strict=False):
        dash = _DASHES.get(dot.provenance, "")
        parts.append(
            f'<line stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" x1="{x(before.x):.1f}" '
            f'y1="{y(before.y):.1f}" x2="{x(dot.x):.1f}" y2="{y(dot.y):.1f}"/>'
        )
    for dot in one.dots:
        if dot.half:
            low, high = max(dot.y - dot.half, floor), dot.y + dot.half
            parts.append(
                f'<line stroke="{colour}" x1="{x(dot.x):.1f}" x2="{x(dot.x):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
            )
        fill = colour if dot.provenance == "measured" else "var(--page)"
        told = html.escape(f"{one.name}: {dot.x} GPU{'' if dot.x == 1 else 's'}, {dot.y:,.4g} ({dot.provenance})")
        parts.append(
            f'<circle cx="{x(dot.x):.1f}" cy="{y(dot.y):.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2">'
            f"<title>{told}</title></circle>"
        )
    return parts


def bars(title: str, values: Sequence[tuple[str, float, str, str]]) -> str:
    """A horizontal bar a row.

    Args:
        values: Label, value, the value's words, provenance.
    """
    if not values:
        return ""
    width, row, top, left = 1120, 22, 34, 320
    height = top + row * len(values) + 10
    most = max(v for _, v, _, _ in values) or 1.0
    parts = [_frame(title, width, height, "broad")]
    for index, (label, value, words, provenance) in enumerate(values):
        y = top + index * row
        long = (width - left - 90) * value / most
        style = (
            f'fill="{COLOURS[0]}"'
            if provenance == "measured"
            else f'fill="none" stroke="{COLOURS[0]}" stroke-width="1.5"'
        )
        dash = f' stroke-dasharray="{_DASHES.get(provenance, "")}"' if provenance != "measured" else ""
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 15}" text-anchor="end">{_cut(label)}</text>')
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{max(long, 1):.1f}" height="{row - 8}" {style}{dash}/>')
        parts.append(f'<text class="tick" x="{left + long + 6:.1f}" y="{y + 15}">{html.escape(words)}</text>')
    parts.append("</svg>")
    return "\n".join(parts)


_LOOKS = {
    "measured": "filled: measured",
    "published": "hollow, dashed: published",
    "extrapolated": "hollow, dotted: extrapolated",
    "simulated": "hollow, finely dotted: simulated",
}


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours; which line style means what."""
    items = [
        f'<span class="key"><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{html.escape(s.name)}</span>'
        for i, s in enumerate(series)
    ]
    seen = {d.provenance for s in series for d in s.dots}
    looks = [*(told for kind, told in _LOOKS.items() if kind in seen), "thin: ideal scaling"]
    return '<p class="legend">' + " ".join(items) + "<br>" + " · ".join(looks) + "</p>"


def _cut(label: str) -> str:
    """A label as long as there is room for it, with the whole of it where the pointer rests."""
    if len(label) <= _ROOM:
        return html.escape(label)
    return f"{html.escape(label[: _ROOM - 1])}…<title>{html.escape(label)}</title>"


def _frame(title: str, width: int, height: int, kind: str = "narrow") -> str:
    return (
        f'<svg class="{kind}" role="img" aria-label="{html.escape(title, quote=True)}" viewBox="0 0 {width} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">\n<text class="heading" x="8" y="20">{html.escape(title)}</text>'
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose both."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if span / s <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, last + 1)] if last > first else [first * step, (first + 1) * step]
