"""The answer to "which GPUs, how many, how long, at what price", in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorawatch.analysis.cost import Configuration as Priced
from lorawatch.analysis.cost import break_even_tokens, energy_per_token
from lorawatch.comparing.words import after, interval_pct, kilowatt_hours, money, tokens_words
from lorawatch.text.numbers import long_duration

if TYPE_CHECKING:
    from lorawatch.comparing.rows import Comparison, Epoch, Row

_YEAR_S = 8766 * 3600.0


def sentences(comparison: Comparison) -> Iterator[str]:
    """The fastest configuration, the fastest of another SKU, the one with the least energy, the cheapest.

    Extrapolated configurations have a sentence of their own, behind the measured and published ones.
    """
    rows = [r for r in comparison.rows if not r.other_work and r.configuration.coupling == "ddp"]
    known = [r for r in rows if r.configuration.provenance != "extrapolated"]
    if not known:
        return
    fastest = max(known, key=_rate)
    others = [r for r in known if r.configuration.short_sku != fastest.configuration.short_sku]
    rivals = [r for r in known if r is not fastest and r not in others and _alike(r, fastest)]
    yield _fastest(fastest, max(rivals, key=_rate, default=None), comparison, alone=len(known) == 1)
    if others:
        yield _second(max(others, key=_rate), fastest, comparison)
    fitted = [r for r in rows if r.configuration.provenance == "extrapolated" and _rate(r) > _rate(fastest)]
    if fitted:
        fastest_fitted = max(fitted, key=_rate)
        yield f"Not measured: by a fitted model, {_name(fastest_fitted)} would take {_time(fastest_fitted, comparison)}."
    yield from _energy(known, comparison)
    yield from _costs(known, comparison)


def rung(row: Row, comparison: Comparison) -> Epoch:
    """The epoch of the comparison's own number of tokens."""
    return row.epochs[comparison.ladder.index(comparison.tokens)]


def _rate(row: Row) -> float:
    return row.configuration.tok_s.value


def _alike(one: Row, other: Row) -> bool:
    """Whether the difference between two rates is within their 95% intervals."""
    a, b = one.configuration.tok_s, other.configuration.tok_s
    return bool(a.ci95 and b.ci95) and abs(a.value - b.value) <= math.hypot(a.ci95 or 0.0, b.ci95 or 0.0)


def _fastest(row: Row, rival: Row | None, comparison: Comparison, *, alone: bool) -> str:
    tokens = tokens_words(comparison.tokens)
    begin = f"{_name(row)} takes" if alone else f"{_name(row)} is the fastest:"
    sentence = f"{begin} {_time(row, comparison)} for {tokens} tokens"
    if row.configuration.count > 1 and row.speedup is not None and row.efficiency_pct is not None:
        sentence += (
            f", {row.speedup.value:.2f} times as fast as one, {interval_pct(row.efficiency_pct)} scaling efficiency"
        )
    if rival is not None:
        sentence += f"; the difference from {_name(rival)} is within the noise"
    return sentence + "."


def _second(row: Row, fastest: Row, comparison: Comparison) -> str:
    sentence = f"Of other models {_name(row)} is the fastest: {_time(row, comparison)}"
    if _alike(row, fastest):
        sentence += ", within the noise of the one above"
    return sentence + "."


def _time(row: Row, comparison: Comparison) -> str:
    """`77.8 min`, `30.0 min (29.1 to 31.0 min)`."""
    time = rung(row, comparison).time
    words = long_duration(time.value)
    if time.low is None or time.high is None:
        return words
    low, high = long_duration(time.low), long_duration(time.high)
    if low == high:
        return words
    number, _, unit = low.partition(" ")
    return f"{words} ({number if high.endswith(' ' + unit) else low} to {high})"


def _name(row: Row) -> str:
    return row.configuration.label + after(row)


def _energy(rows: list[Row], comparison: Comparison) -> Iterator[str]:
    known = [(r.configuration.tok_per_j.value, r) for r in rows if r.configuration.tok_per_j is not None]
    if len(known) < 2:
        return
    _, frugal = max(known, key=lambda pair: pair[0])
    epoch = rung(frugal, comparison)
    paid = f", {money(epoch.energy_cost)} at {comparison.prices.price_per_kwh:g} a kWh" if epoch.energy_cost else ""
    yield f"{_name(frugal)} takes the least energy: {kilowatt_hours(epoch.kwh)} kWh{paid}."


def _costs(rows: list[Row], comparison: Comparison) -> Iterator[str]:
    priced = [(epoch.total_cost, row) for row in rows if (epoch := rung(row, comparison)).total_cost is not None]
    if len(priced) < 2:
        return
    total, cheapest = min(priced, key=lambda pair: pair[0] or 0.0)
    yield f"{_name(cheapest)} is the cheapest: {money(total)} for energy and its share of the hardware's price."
    price = comparison.prices.price_per_kwh
    pair = []
    for _, row in sorted(priced, key=lambda pair: -_rate(pair[1]))[:2]:
        hardware, per_joule = comparison.prices.hardware(row.configuration), row.configuration.tok_per_j
        if hardware is None or per_joule is None or price is None:
            return
        pair.append((Priced(_name(row), hardware, energy_per_token(per_joule.value, price)), row))
    break_even = break_even_tokens(pair[0][0], pair[1][0])
    if break_even.dearer is None:
        return
    (dear, row), (cheap, _) = pair if pair[0][0].name == break_even.dearer else pair[::-1]
    yield f"{dear.name} costs more to buy than {cheap.name} and {_paid_back(break_even.tokens, row, comparison)}."


def _paid_back(tokens: float | None, row: Row, comparison: Comparison) -> str:
    if tokens is None:
        return "never pays it back by energy"
    years = tokens / _rate(row) / _YEAR_S / comparison.prices.utilisation
    if years <= comparison.prices.life_years:
        return f"pays it back by its lower energy after {tokens_words(tokens)} tokens"
    return f"would pay it back by its lower energy in {years:,.{0 if years >= 10 else 1}f} years, longer than it serves"
