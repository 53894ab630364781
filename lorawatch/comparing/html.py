"""A comparison as one self-contained page: text, tables and charts, nothing fetched, fit to print and to attach.

What a page says is prepared here; `assets/templates` has its markup and its style.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorawatch.comparing import charts, words
from lorawatch.comparing import work as works
from lorawatch.comparing.rows import Comparison, Row
from lorawatch.comparing.series import lines
from lorawatch.comparing.templates import render
from lorawatch.system.version import __version__
from lorawatch.text.numbers import long_duration

if TYPE_CHECKING:
    from lorawatch.comparing.sheets import Document, Sheet


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column's heading and the CSS classes of its cells."""

    heading: str
    css: str


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row's cells and its CSS classes."""

    cells: Sequence[str]
    css: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the template draws it; every row has a cell for each column."""

    columns: Sequence[TableColumn]
    rows: Sequence[TableRow]


def page(comparison: Comparison) -> str:
    """The whole page; all text from outside is escaped."""
    columns = words.columns(comparison)
    of_throughput = 1 + next(i for i, column in enumerate(columns) if column.name == "against_baseline")
    naming = [column for column in columns if column.name in ("configuration", "provenance", "name")]
    tokens = words.tokens_words(comparison.tokens)
    return render(
        "comparison.html.j2",
        **_page_values("Which GPUs, and how many?", words.notes(comparison)),
        runs=list(_runs(comparison)),
        answer=comparison.answer,
        work=words.heading(comparison),
        tokens=tokens,
        throughput=_rows_table(columns[:of_throughput], comparison),
        power_and_cost=_rows_table([*naming, *columns[of_throughput:]], comparison),
        prices=list(_prices(comparison)),
        ladder_title=_capital(words.ladder_title(comparison)),
        ladder=_ladder_table(comparison),
        line_charts=_line_charts(comparison),
        epoch_chart=charts.bar_chart(f"time of {tokens} tokens", [_bar(row, comparison) for row in _ddp(comparison)]),
        legend=charts.legend(lines(comparison, "tok_s")),
    )


def document_page(document: Document) -> str:
    """Sentences, tables and notes as a page of the same look."""
    return render(
        "document.html.j2",
        **_page_values(document.title, document.notes),
        runs=[],
        work=document.work,
        answer=document.answer,
        sheets=[{"title": _capital(sheet.title), "table": _sheet_table(sheet)} for sheet in document.sheets],
    )


def _page_values(title: str, notes: Sequence[str]) -> dict[str, Any]:
    """What every page shows around its content."""
    return {
        "title": title,
        "notes": notes,
        "version": __version__,
        "written_at": time.strftime("%Y-%m-%d %H:%M"),
    }


def _ddp(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.configuration.coupling == "ddp"]


def _rows_table(columns: Sequence[words.Column], comparison: Comparison) -> Table:
    """Some of the columns; a table of all of them is wider than a page."""
    return Table(
        [
            TableColumn(column.heading, _classes(not column.right and "text", column.name == "provenance" and "from"))
            for column in columns
        ],
        [TableRow([column.text(row) for column in columns], _row_classes(row, comparison)) for row in comparison.rows],
    )


def _ladder_table(comparison: Comparison) -> Table:
    headings, ladder = words.ladder(comparison)
    first, *times = headings
    return Table(
        [TableColumn(first, "text"), *(TableColumn(heading, "") for heading in times)],
        [TableRow(cells, _row_classes(row, comparison)) for row, cells in zip(_ddp(comparison), ladder, strict=True)],
    )


def _sheet_table(sheet: Sheet) -> Table:
    return Table(
        [TableColumn(h, _classes(not right and "text")) for h, right in zip(sheet.headings, sheet.right, strict=True)],
        [TableRow(row) for row in sheet.rows],
    )


def _line_charts(comparison: Comparison) -> list[charts.LineChart]:
    """The charts that have something to show; efficiency needs a row of several GPUs."""
    drawn = [charts.line_chart("tok/s, all GPUs together", lines(comparison, "tok_s"), ideal=True)]
    if any(row.configuration.count > 1 and row.efficiency_pct is not None for row in _ddp(comparison)):
        efficiency = lines(comparison, "efficiency_pct")
        drawn.append(charts.line_chart("scaling efficiency", efficiency, least=None, unit="%"))
    drawn.append(charts.line_chart("tokens per joule", lines(comparison, "tok_per_j")))
    return [chart for chart in drawn if chart is not None]


def _bar(row: Row, comparison: Comparison) -> tuple[str, float, str, str]:
    seconds = row.epochs[comparison.ladder.index(comparison.tokens)].time.value
    return row.configuration.label + words.after(row), seconds, long_duration(seconds), row.configuration.provenance


def _runs(comparison: Comparison) -> Iterator[str]:
    """The runs behind each row of own runs."""
    for configuration in (row.configuration for row in comparison.rows):
        if configuration.provenance in ("measured", "simulated"):
            yield f"{configuration.label}: {configuration.source}"


def _prices(comparison: Comparison) -> Iterator[str]:
    """What costs are computed with; nothing without a price."""
    prices = comparison.prices
    if prices.price_per_kwh is None and not prices.gpu_prices:
        return
    if prices.price_per_kwh is not None:
        yield f"{prices.price_per_kwh:g} per kWh"
    for sku, price in prices.gpu_prices.items():
        yield f"{price:g} for a {works.one_line(sku)}"
    if prices.host_price:
        yield f"{prices.host_price:g} for the machine around them"
    yield f"hardware serves {prices.life_years:g} years and works {100 * prices.utilisation:g}% of that time"


def _row_classes(row: Row, comparison: Comparison) -> str:
    return _classes(
        row.configuration.provenance,
        row.other_work and "other",
        row.configuration is comparison.baseline and "baseline",
    )


def _classes(*names: object) -> str:
    """Those CSS classes that apply; what does not is empty or False."""
    return " ".join(str(name) for name in names if name)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
