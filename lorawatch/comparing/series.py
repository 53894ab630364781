"""A comparison's figures over the number of GPUs: what charts draw, on a page and on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lorawatch.analysis.interval import Figure
from lorawatch.comparing.charts import Dot, Series
from lorawatch.comparing.rows import Comparison, Row
from lorawatch.comparing.words import after

FIGURES: Mapping[str, Callable[[Row], Figure | None]] = {
    "tok_s": lambda row: row.configuration.tok_s,
    "efficiency_pct": lambda row: row.efficiency_pct,
    "tok_per_j": lambda row: row.configuration.tok_per_j,
}
"""What can be drawn, by the name of its column."""


def lines(comparison: Comparison, what: str) -> list[Series]:
    """A series for each family: one SKU from one source at one piece of work.

    A family without a value keeps its place, so that its colour and letter stay its own in every chart.

    Args:
        what: One of `FIGURES`.
    """
    families: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if row.configuration.coupling == "ddp":
            families.setdefault(row.configuration.family, []).append(row)
    series = []
    for rows in families.values():
        dots = []
        for row in sorted(rows, key=lambda r: r.configuration.count):
            figure = FIGURES[what](row)
            if figure is not None:
                dots.append(Dot(row.configuration.count, figure.value, figure.ci95, row.configuration.provenance))
        name = rows[0].configuration.short_sku + after(rows[0])
        series.append(Series(name, tuple(dots)))
    return series
