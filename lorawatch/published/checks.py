"""Published benchmark tables: which printed cells do not follow from the table's own figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorawatch.published.printed import Cell, compare_cell, number
from lorawatch.published.rows import Difference, PublishedRow


def differences(rows: Iterable[PublishedRow]) -> list[Difference]:
    """The cells that do not follow from the same table's tok/s, watts and data set sizes, within the rounding of both.

    tok/s per GPU, scaling, efficiency, tok/s per watt and epoch time are checked, each where the table has what it is
    computed from: a configuration's own tok/s, and one GPU's of the same model, source and work.
    """
    return [
        Difference(row, column, row.printed[column], computed.value, computed.reason)
        for row, column, computed in _checks(rows)
        if not compare_cell(row.printed[column], computed.value, computed.spread)
    ]


def checked_cells(rows: Iterable[PublishedRow]) -> int:
    """How many printed cells `differences` can check."""
    return sum(1 for _ in _checks(rows))


def work_differences(work: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where a recipe's work differs from a published one's: dotted key → (published, in the recipe); empty for the same work.

    Model names are compared without their owner and a leading `Meta-`, since the same weights are called
    `meta-llama/Llama-3.1-8B-Instruct` and `NousResearch/Meta-Llama-3.1-8B-Instruct`.
    """
    differing: dict[str, tuple[Any, Any]] = {}
    for section, values in work.items():
        other = recipe.get(section)
        for key, value in values.items():
            in_recipe = other.get(key) if isinstance(other, Mapping) else None
            same = _model(value) == _model(in_recipe) if (section, key) == ("model", "name") else value == in_recipe
            if not same:
                differing[f"{section}.{key}"] = (value, in_recipe)
    return differing


def _model(name: object) -> str:
    return str(name).rpartition("/")[2].lower().removeprefix("meta-")


@dataclass(frozen=True)
class _Computed:
    value: float
    spread: float
    reason: str


def _checks(rows: Iterable[PublishedRow]) -> Iterator[tuple[PublishedRow, str, _Computed]]:
    """Each printed cell that can be computed from others: its row, its column, the computed figure."""
    rows = list(rows)
    rates = {_configuration(row): row for row in rows if row.tok_s is not None}
    for row in rows:
        for column, computed in _computed(row, rates):
            if column in row.printed:
                yield row, column, computed


def _computed(row: PublishedRow, rates: Mapping[Any, PublishedRow]) -> Iterator[tuple[str, _Computed]]:
    """The figures that can be computed for a row, by column."""
    count = row.gpu_count
    rated = rates.get(_configuration(row))
    rate = None if rated is None else _cell(rated, "tok_s")
    if rate is not None and row.dataset_tokens is not None:
        yield "epoch_time", _quotient(Cell(row.dataset_tokens, 0), rate)
    rate = _cell(row, "tok_s")
    if rate is None:
        return
    yield "tok_s_per_gpu", _quotient(rate, Cell(count, 0))
    watts = _cell(row, "avg_power_w")
    if watts is not None:
        yield "tok_per_j", _quotient(rate, watts)
    single = rates.get(_configuration(replace(row, gpu_count=1)))
    one = None if single is None else _cell(single, "tok_s")
    if one is not None:
        yield "scaling", _quotient(rate, one)
        times = Cell(count * one.value, count * one.half_unit)
        arithmetic = f"100 × {_written(rate.value)} ÷ ({count} × {_written(one.value)})"
        yield "efficiency_pct", _quotient(rate, times, 100, arithmetic)


def _quotient(over: Cell, under: Cell, factor: float = 1.0, reason: str | None = None) -> _Computed:
    """A quotient, and how far it may be off because both were rounded."""
    value = factor * over.value / under.value
    low = factor * (over.value - over.half_unit) / (under.value + under.half_unit)
    least = under.value - under.half_unit
    high = factor * (over.value + over.half_unit) / least if least > 0 else float("inf")
    return _Computed(
        value, max(high - value, value - low), reason or f"{_written(over.value)} ÷ {_written(under.value)}"
    )


def _written(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"


def _cell(row: PublishedRow, column: str) -> Cell | None:
    """A row's figure with its rounding; exact where it was not printed."""
    value = getattr(row, column)
    printed = row.printed.get(column)
    return number(printed) if printed is not None else None if value is None else Cell(value, 0)


def _configuration(row: PublishedRow) -> tuple[Any, ...]:
    return row.source, repr(row.work), row.sku, row.gpu_count
