"""The question that a comparison is opened for, answered in sentences: which GPUs, how many, how long, at what price."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorawatch.analysis.cost import Configuration as Priced
from lorawatch.analysis.cost import break_even_tokens, energy_per_token
from lorawatch.comparing.words import interval_pct, money, tokens_words
from lorawatch.text import long_duration

if TYPE_CHECKING:
    from lorawatch.comparing.comparison import Comparison, Epoch, Row

_YEAR_S = 8766 * 3600.0


def sentences(comparison: Comparison) -> Iterator[str]:
    """The fastest configuration with what it is worth, the best of another SKU, the most frugal, the cheapest."""
    rows = [r for r in comparison.rows if not r.other_work and r.configuration.coupling == "ddp"]
    if not rows:
        return
    fastest = max(rows, key=lambda r: r.configuration.tok_s.value)
    yield _finish(fastest, comparison)
    others = [r for r in rows if r.configuration.sku != fastest.configuration.sku]
    if others:
        second = max(others, key=lambda r: r.configuration.tok_s.value)
        yield f"{_name(second)} needs {long_duration(rung(second, comparison).time.value)}."
    known = [r for r in rows if r.configuration.tok_per_j is not None]
    if len(known) > 1:
        frugal = max(known, key=lambda r: r.configuration.tok_per_j.value if r.configuration.tok_per_j else 0)
        kwh = rung(frugal, comparison).kwh
        if frugal is not fastest and kwh is not None:
            yield f"{_name(frugal)} takes the least energy: {kwh:.2f} kWh."
    yield from _costs(rows, comparison)


def rung(row: Row, comparison: Comparison) -> Epoch:
    """The epoch of the comparison's own number of tokens."""
    return row.epochs[comparison.ladder.index(comparison.tokens)]


def _finish(row: Row, comparison: Comparison) -> str:
    time = rung(row, comparison).time
    said = f"{_name(row)} finishes {tokens_words(comparison.tokens)} tokens in {long_duration(time.value)}"
    if time.low is not None and time.high is not None:
        said += f" ({long_duration(time.low)} to {long_duration(time.high)})"
    if row.configuration.count > 1 and row.speedup is not None and row.efficiency_pct is not None:
        said += f", {row.speedup.value:.2f} × one, at {interval_pct(row.efficiency_pct)} efficiency"
    return said + "."


def _name(row: Row) -> str:
    configuration = row.configuration
    return configuration.label + ("" if configuration.provenance == "measured" else f" ({configuration.provenance})")


def _costs(rows: list[Row], comparison: Comparison) -> Iterator[str]:
    priced = []
    for row in rows:
        epoch = rung(row, comparison)
        if epoch.energy_cost is not None and epoch.hardware_cost is not None:
            priced.append((epoch.energy_cost + epoch.hardware_cost, row))
    if len(priced) > 1:
        total, cheapest = min(priced, key=lambda pair: pair[0])
        yield f"{_name(cheapest)} is the cheapest: {money(total)} for energy and its share of the hardware."
    price = comparison.prices.price_per_kwh
    if price is None or len(priced) < 2:
        return
    fast = sorted(priced, key=lambda pair: -pair[1].configuration.tok_s.value)[:2]
    pair = []
    for _, row in fast:
        hardware, per_joule = comparison.prices.hardware(row.configuration), row.configuration.tok_per_j
        if hardware is None or per_joule is None:
            return
        pair.append(Priced(_name(row), hardware, energy_per_token(per_joule.value, price)))
    found = break_even_tokens(*pair)
    if found.dearer is None:
        return
    cheap = next(p.name for p in pair if p.name != found.dearer)
    paid = "never pays it back by energy"
    if found.tokens is not None:
        rate = next(row.configuration.tok_s.value for _, row in fast if _name(row) == found.dearer)
        years = found.tokens / rate / _YEAR_S
        if years <= comparison.prices.life_years:
            paid = f"pays it back by its lower energy after {tokens_words(found.tokens)} tokens"
        else:
            paid = f"would take {years:,.0f} years of work to pay it back by its lower energy"
    yield f"{found.dearer} costs more to buy than {cheap} and {paid}."
