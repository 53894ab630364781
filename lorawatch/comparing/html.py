"""A comparison as one self-contained page: text, tables and charts, nothing fetched, fit to print and to attach."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lorawatch.comparing import charts, words
from lorawatch.comparing import work as works
from lorawatch.comparing.rows import Comparison, Row
from lorawatch.comparing.series import lines
from lorawatch.system.version import __version__
from lorawatch.text.numbers import long_duration

if TYPE_CHECKING:
    from lorawatch.comparing.sheets import Document

_STYLE = """
:root { --page: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6; --shade: #f4f6f9;
  --published: #a34a07; --extrapolated: #6d28d9; --simulated: #be185d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --ink: #e6eaf0; --soft: #9aa5b4; --line: #2c3440; --shade: #1a2029;
    --published: #f0a35e; --extrapolated: #b794f6; --simulated: #f48fb1; }
}
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1320px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.soft, .legend, footer { color: var(--soft); font-size: .87rem; }
.answer { font-size: 1.12rem; border-left: 4px solid #2563eb; padding: .3rem 1rem; background: var(--shade); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; } .text { text-align: left; }
tr.published td { background: var(--shade); } tr.extrapolated td, tr.simulated td { font-style: italic; }
tr.published .from { color: var(--published); } tr.extrapolated .from { color: var(--extrapolated); }
tr.simulated .from { color: var(--simulated); }
tr.other td { color: var(--soft); } tr.baseline td:first-child { font-weight: 700; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg.broad { grid-column: 1 / -1; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick { fill: var(--soft); } svg .heading { font-weight: 600; font-size: 14px; }
svg .grid { stroke: var(--line); } svg .ideal { stroke-width: 1; opacity: .55; }
.key i { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .8em; }
li { margin: .15rem 0; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --shade: #f4f4f4;
    --published: #a34a07; --extrapolated: #6d28d9; --simulated: #be185d; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 10.5px; } body { font-size: 1rem; margin: 0; max-width: none; padding: 0; }
  th, td { padding: .2rem .35rem; } .wide { overflow: visible; } .charts { grid-template-columns: 1fr 1fr 1fr; }
  h2 { break-after: avoid; } svg, tr, .answer, .legend { break-inside: avoid; } thead { display: table-header-group; }
}
"""


def page(comparison: Comparison) -> str:
    """The whole page; all text from outside is escaped."""
    columns = words.columns(comparison)
    headings, ladder = words.ladder(comparison)
    series = lines(comparison, "tok_s")
    shown = [row for row in comparison.rows if row.configuration.coupling == "ddp"]
    rates = 1 + next(i for i, c in enumerate(columns) if c.name == "against_baseline")
    named = [c for c in columns if c.name in ("configuration", "provenance", "name")]
    body = [
        '<p class="answer">' + "<br>".join(_text(s) for s in comparison.answer) + "</p>" if comparison.answer else "",
        f'<p class="soft">{_text(words.heading(comparison))}<br>'
        "tok/s counts positions computed, padding included · ± is a 95% interval</p>",
        "<h2>Throughput</h2>",
        _rows(columns[:rates], comparison),
        f"<h2>Power, memory, and one epoch of {words.tokens_words(comparison.tokens)} tokens</h2>",
        _rows([*named, *columns[rates:]], comparison),
        _prices(comparison),
        f"<h2>{_text(_capital(words.ladder_title(comparison)))}</h2>",
        _table(headings, [(_class(r, comparison), line) for r, line in zip(shown, ladder, strict=True)],
               [False] + [True] * len(comparison.ladder)),
        "<h2>Charts</h2>",
        '<div class="charts">',
        charts.lines("tok/s, all GPUs together", series, ideal=True),
        charts.lines("scaling efficiency", lines(comparison, "efficiency_pct"), least=None, unit="%")
        if any(r.configuration.count > 1 and r.efficiency_pct is not None for r in shown)
        else "",
        charts.lines("tokens per joule", lines(comparison, "tok_per_j")),
        charts.bars(
            f"time of {words.tokens_words(comparison.tokens)} tokens",
            [_bar(row, comparison) for row in shown],
        ),
        "</div>",
        charts.legend(series),
        _notes(words.notes(comparison)),
        _footer(comparison),
    ]  # fmt: skip
    return frame("Which GPUs, and how many?", body)


def frame(title: str, body: Iterable[str]) -> str:
    """A whole page around its parts, which are HTML already; empty ones are left out."""
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
    ]
    return "\n".join([*head, *(part for part in body if part), "</body></html>"])


def document_page(document: Document) -> str:
    """Sentences, tables and notes as a page of the same look."""
    return frame(
        document.title,
        [
            f'<p class="soft">{_text(document.work)}</p>',
            f'<p class="answer">{"<br>".join(_text(s) for s in document.answer)}</p>' if document.answer else "",
            *(
                f"<h2>{_text(_capital(s.title))}</h2>" + _table(s.headings, [("", row) for row in s.rows], s.right)
                for s in document.sheets
            ),
            _notes(document.notes),
            f"<footer><p>lorawatch {__version__}, {time.strftime('%Y-%m-%d %H:%M')}.</p></footer>",
        ],
    )


def _rows(columns: Sequence[words.Column], comparison: Comparison) -> str:
    """Some of the columns; a table of all of them is wider than a page."""
    return _table(
        [c.heading for c in columns],
        [(_class(row, comparison), [c.text(row) for c in columns]) for row in comparison.rows],
        [c.right for c in columns],
        ["from" if c.name == "provenance" else "" for c in columns],
    )


def _bar(row: Row, comparison: Comparison) -> tuple[str, float, str, str]:
    seconds = row.epochs[comparison.ladder.index(comparison.tokens)].time.value
    return row.configuration.label + words.after(row), seconds, long_duration(seconds), row.configuration.provenance


def _footer(comparison: Comparison) -> str:
    """Which lorawatch wrote this and when, and the runs behind each row that somebody of the house has measured."""
    own = [r.configuration for r in comparison.rows if r.configuration.provenance in ("measured", "simulated")]
    runs = "; ".join(f"{c.label}: {c.source}" for c in own)
    told = f" Runs of the rows: {runs}." if runs else ""
    return f"<footer><p>lorawatch {__version__}, {time.strftime('%Y-%m-%d %H:%M')}.{_text(told)}</p></footer>"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(
    headings: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    right: Sequence[bool],
    kinds: Sequence[str] | None = None,
) -> str:
    """A table; a row is its class and its cells.

    Args:
        kinds: More classes of each column's cells.
    """
    classes = [
        " ".join(filter(None, ("" if to_right else "text", kind)))
        for to_right, kind in zip(right, kinds or [""] * len(right), strict=True)
    ]

    def cells(tag: str, line: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{kind}">{_text(c)}</{tag}>' if kind else f"<{tag}>{_text(c)}</{tag}>"
            for c, kind in zip(line, classes, strict=True)
        )

    body = "\n".join(f'<tr class="{kind}">{cells("td", line)}</tr>' for kind, line in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", headings)}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _class(row: Row, comparison: Comparison) -> str:
    kind: str = row.configuration.provenance
    kind += " other" if row.other_work else ""
    return f"{kind} baseline" if row.configuration is comparison.baseline else kind


def _prices(comparison: Comparison) -> str:
    prices = comparison.prices
    if prices.price_per_kwh is None and not prices.gpu_prices:
        return ""
    said = [f"{prices.price_per_kwh:g} per kWh"] if prices.price_per_kwh is not None else []
    said += [f"{price:g} for a {works.one_line(sku)}" for sku, price in prices.gpu_prices.items()]
    said += [f"{prices.host_price:g} for the machine around them"] if prices.host_price else []
    said.append(f"hardware serves {prices.life_years:g} years and works {100 * prices.utilisation:g}% of that time")
    return f'<p class="soft">Prices: {_text("; ".join(said))}.</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{_text(n)}</li>" for n in notes) + "</ul>"


def _text(text: str) -> str:
    return html.escape(text)
