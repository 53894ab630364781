"""A comparison as one self-contained page: text, tables and charts, nothing fetched, fit to print and to attach."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence

from lorawatch import __version__
from lorawatch.comparing import charts, words
from lorawatch.comparing import work as works
from lorawatch.comparing.comparison import Comparison, Row
from lorawatch.comparing.series import lines
from lorawatch.text import long_duration

_STYLE = """
:root { --page: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6; --shade: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --ink: #e6eaf0; --soft: #9aa5b4; --line: #2c3440; --shade: #1a2029; }
}
@media print { :root { --page: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --shade: #f4f4f4; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1320px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.soft, .legend, footer { color: var(--soft); font-size: .87rem; }
.answer { font-size: 1.12rem; border-left: 4px solid #2563eb; padding: .3rem 1rem; background: var(--shade); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; } .text { text-align: left; white-space: nowrap; }
tr.published td, tr.extrapolated td, tr.simulated td { font-style: italic; background: var(--shade); }
tr.baseline td:first-child { font-weight: 700; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick { fill: var(--soft); } svg .heading { font-weight: 600; font-size: 14px; }
svg .grid { stroke: var(--line); } svg .ideal { stroke-width: 1; opacity: .55; }
.key i { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .8em; }
li { margin: .15rem 0; }
"""


def page(comparison: Comparison) -> str:
    """The whole page; all text from outside is escaped."""
    columns = words.columns(comparison)
    headings, ladder = words.ladder(comparison)
    series = lines(comparison, "tok_s")
    title = "Which GPUs, and how many?"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="soft">{_text(works.words(comparison.work))}<br>baseline: {_text(comparison.baseline.label)} · '
        f"tok/s counts positions computed, padding included · ± is a 95% interval</p>",
        '<p class="answer">' + "<br>".join(_text(s) for s in comparison.answer) + "</p>" if comparison.answer else "",
        "<h2>Configurations</h2>",
        _table(
            [c.heading for c in columns],
            [(_class(row, comparison), [c.text(row) for c in columns]) for row in comparison.rows],
            [c.right for c in columns],
        ),
        "<h2>Scaling</h2>",
        '<div class="charts">',
        charts.lines("tok/s, all GPUs together", series, ideal=True),
        charts.lines("scaling efficiency", lines(comparison, "efficiency_pct"), least=None, unit="%"),
        charts.lines("tokens per joule", lines(comparison, "tok_per_j")),
        charts.bars(
            f"time of {words.tokens_words(comparison.tokens)} tokens",
            [
                (
                    row.configuration.label,
                    row.epochs[comparison.ladder.index(comparison.tokens)].time.value,
                    long_duration(row.epochs[comparison.ladder.index(comparison.tokens)].time.value),
                    row.configuration.provenance,
                )
                for row in comparison.rows
                if row.configuration.coupling == "ddp"
            ],
        ),
        "</div>",
        charts.legend(series),
        "<h2>One epoch of so many tokens</h2>",
        _table(headings, [("", line) for line in ladder], [False] + [True] * len(comparison.ladder)),
        _prices(comparison),
        _notes(words.notes(comparison)),
        f"<footer><p>lorawatch {__version__}, {time.strftime('%Y-%m-%d %H:%M')}. Measured rows name their runs: "
        + "; ".join(
            _text(f"{r.configuration.label}: {r.configuration.source}")
            for r in comparison.rows
            if r.configuration.provenance == "measured"
        )
        + "</p></footer></body></html>",
    ]
    return "\n".join(p for p in parts if p)


def _table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], right: Sequence[bool]) -> str:
    def cells(tag: str, line: Sequence[str]) -> str:
        return "".join(
            f"<{tag}>{_text(c)}</{tag}>" if to_right else f'<{tag} class="text">{_text(c)}</{tag}>'
            for c, to_right in zip(line, right, strict=True)
        )

    body = "\n".join(f'<tr class="{kind}">{cells("td", line)}</tr>' for kind, line in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", headings)}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _class(row: Row, comparison: Comparison) -> str:
    kind = row.configuration.provenance
    return f"{kind} baseline" if row.configuration is comparison.baseline else kind


def _prices(comparison: Comparison) -> str:
    prices = comparison.prices
    if prices.price_per_kwh is None and not prices.gpu_prices:
        return ""
    said = [f"{prices.price_per_kwh:g} per kWh"] if prices.price_per_kwh is not None else []
    said += [f"{price:g} for a {sku}" for sku, price in prices.gpu_prices.items()]
    said += [f"{prices.host_price:g} for the machine around them"] if prices.host_price else []
    said.append(f"hardware lives {prices.life_years:g} years and works {100 * prices.utilisation:g}% of them")
    return f'<p class="soft">Prices: {_text("; ".join(said))}.</p>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{_text(n)}</li>" for n in notes) + "</ul>"


def _text(text: str) -> str:
    return html.escape(text)
