"""Columns of (lowest, highest) values drawn with braille dots: two columns and four rows of dots a cell."""

from __future__ import annotations

from collections.abc import Sequence

DOTS = 4
"""Rows of dots a cell."""
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
    dots = rows * DOTS
    width = (len(columns) + 1) // 2
    grid = [[0] * width for _ in range(rows)]
    for index, column in enumerate(columns):
        if column is None:
            continue
        bottom, top = column
        last = dot(top, low, high, dots)
        first = dot(bottom, low, high, dots)
        marks = _RIGHT if index % 2 else _LEFT
        for here in range(0 if fill else first, last + 1):
            if not fill or here <= first or here == last or (here + index) % 2:
                grid[rows - 1 - here // DOTS][index // 2] |= marks[here % DOTS]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in grid]


def dot(value: float, low: float, high: float, dots: int) -> int:
    """The dot of a value, counted from the bottom."""
    if not high > low:
        return 0
    return min(max(int((value - low) / (high - low) * (dots - 1) + 0.5), 0), dots - 1)
