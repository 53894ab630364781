"""Columns of (lowest, highest) values drawn with braille dots: two columns and four rows of dots a cell."""

from __future__ import annotations

from collections.abc import Sequence

_LEFT = (0x40, 0x04, 0x02, 0x01)  # dots 7, 3, 2, 1: from the bottom up
_RIGHT = (0x80, 0x20, 0x10, 0x08)


def braille(
    columns: Sequence[tuple[float, float] | None], rows: int, low: float, high: float, *, fill: bool = True
) -> list[str]:
    """Text lines, the top one first; two columns make one character.

    Args:
        columns: Extremes a dot column; None leaves it empty.
        rows: Lines of text.
        low, high: Values at the bottom and the top edge.
        fill: Draw from the bottom up to the lowest value, and every other dot from there to the highest, so that the
            envelope shows without a second colour; else only from the lowest to the highest.
    """
    dots = rows * 4
    span = high - low
    width = (len(columns) + 1) // 2
    grid = [[0] * width for _ in range(rows)]
    for index, column in enumerate(columns):
        if column is None:
            continue
        bottom, top = column
        last = _dot(top, low, span, dots)
        first = _dot(bottom, low, span, dots)
        marks = _RIGHT if index % 2 else _LEFT
        for dot in range(0 if fill else first, last + 1):
            if not fill or dot <= first or dot == last or (dot + index) % 2:
                grid[rows - 1 - dot // 4][index // 2] |= marks[dot % 4]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in grid]


def _dot(value: float, low: float, span: float, dots: int) -> int:
    if span <= 0:
        return 0
    return min(max(int((value - low) / span * (dots - 1) + 0.5), 0), dots - 1)
