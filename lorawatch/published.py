"""Published benchmark tables: rows as printed, their figures, and which cells do not follow from the table's own figures."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from lorawatch import __version__
from lorawatch.printed import Cell, compare_cell, number
from lorawatch.sanitize import clean

__all__ = [
    "Difference",
    "PublishedRow",
    "PublishedSource",
    "builtin_digest",
    "builtin_rows",
    "builtin_sources",
    "checked_cells",
    "compare_cell",
    "differences",
    "read_csv",
    "work_differences",
]


@dataclass(frozen=True)
class PublishedRow:
    """A row of somebody's table: a configuration's figures, or its epoch time over a data set.

    Attributes:
        source: Who published it.
        sku: The GPU model, by its short name where it has one.
        gpu_count: GPUs used.
        tok_s, tok_s_per_gpu: Tokens a second, of all GPUs and of each.
        scaling: tok/s over tok/s of one GPU.
        efficiency_pct: Scaling efficiency, percent.
        avg_power_w: Mean power, watts.
        tok_per_j: Tokens a joule, the same number as tok/s per watt.
        dataset, dataset_tokens: A data set's name and size.
        epoch_time, epoch_s: Its epoch time as printed, and in seconds.
        url, note, title: Where it stands, what to know about it, the table's title.
        work: What was trained, as a part of a recipe; None where the table does not say.
        printed: The cells as printed, by column; empty cells are left out.
    """

    source: str
    sku: str
    gpu_count: int
    tok_s: float | None = None
    tok_s_per_gpu: float | None = None
    scaling: float | None = None
    efficiency_pct: float | None = None
    avg_power_w: float | None = None
    tok_per_j: float | None = None
    dataset: str | None = None
    dataset_tokens: int | None = None
    epoch_time: str | None = None
    epoch_s: float | None = None
    url: str | None = None
    note: str | None = None
    title: str | None = None
    work: Mapping[str, Any] | None = None
    printed: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """`RTX PRO 5000 × 2`, with the data set where there is one."""
        name = f"{self.sku} × {self.gpu_count}"
        return f"{name}, {self.dataset}" if self.dataset else name


@dataclass(frozen=True)
class PublishedSource:
    """What the package says about a table that it carries.

    Attributes:
        source: The rows' source.
        publisher, title, url: Who published it, under which title, where.
        method: What was measured and how, in a few lines.
        work: What was trained, as a part of a recipe.
        notes: What to know, each with the rows (SKU, GPU count) it is about.
        files: The tables' files.
        skus: What the tables call a GPU, and its short name.
    """

    source: str
    publisher: str
    title: str
    method: str
    work: Mapping[str, Any]
    files: tuple[str, ...]
    skus: Mapping[str, str]
    notes: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    url: str | None = None


@dataclass(frozen=True)
class Difference:
    """A printed cell that the table's own figures do not give.

    Attributes:
        row: The row it stands in.
        column: The row's column.
        printed: As printed.
        computed: The figure that follows; seconds for an epoch time.
        reason: The arithmetic, for people.
    """

    row: PublishedRow
    column: str
    printed: str
    computed: float
    reason: str


def read_csv(path: Path, *, source: str | None = None, named: Callable[[str], str] = str) -> list[PublishedRow]:
    """Read a table; `lorawatch.published_csv.COLUMNS` documents its columns.

    Args:
        path: A CSV file, UTF-8, with a header.
        source: The rows' source where the file has no such column; default: the file's name.
        named: A GPU's short name from its printed one.

    Raises:
        UsageError: The file cannot be read, a column is unknown, or a cell is not what its column allows; the message names
            the first such line and column, the value, what is allowed, and how many more there are.
    """
    from lorawatch.published_csv import read

    return read(path, source or clean(path.stem), named)


def builtin_sources() -> tuple[PublishedSource, ...]:
    """The tables that the package carries."""
    return tuple(source for source, _ in _builtin())


def builtin_rows() -> tuple[PublishedRow, ...]:
    """The rows of the tables that the package carries."""
    return tuple(row for _, rows in _builtin() for row in rows)


@functools.cache
def builtin_digest() -> str:
    """Changes whenever the package's tables may read differently; costs no parsing."""
    checksum = zlib.crc32(__version__.encode())
    for file in _files():
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return f"{checksum:08x}"


def differences(rows: Iterable[PublishedRow]) -> list[Difference]:
    """The cells that do not follow from the same table's tok/s, watts and data set sizes, within the rounding of both.

    Checked are tok/s per GPU, scaling, efficiency, tok/s per watt and epoch time, each where the table has what it is
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
    """Where a recipe's work is not a published one's: dotted key → (published, in the recipe); empty for the same work.

    Model names are compared without their owner and a leading `Meta-`, since the same weights are called
    `meta-llama/Llama-3.1-8B-Instruct` and `NousResearch/Meta-Llama-3.1-8B-Instruct`.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for section, values in work.items():
        other = recipe.get(section)
        for key, value in values.items():
            mine = other.get(key) if isinstance(other, Mapping) else None
            same = _model(value) == _model(mine) if (section, key) == ("model", "name") else value == mine
            if not same:
                found[f"{section}.{key}"] = (value, mine)
    return found


def _model(name: object) -> str:
    return str(name).rpartition("/")[2].lower().removeprefix("meta-")


@dataclass(frozen=True)
class _Computed:
    value: float
    spread: float
    reason: str


def _checks(rows: Iterable[PublishedRow]) -> Iterator[tuple[PublishedRow, str, _Computed]]:
    """Each printed cell that follows from others: its row, its column, what follows."""
    rows = list(rows)
    rates = {_configuration(row): row for row in rows if row.tok_s is not None}
    for row in rows:
        for column, computed in _computed(row, rates):
            if column in row.printed:
                yield row, column, computed


def _computed(row: PublishedRow, rates: Mapping[Any, PublishedRow]) -> Iterator[tuple[str, _Computed]]:
    """What follows for a row, by column."""
    count = row.gpu_count
    mine = rates.get(_configuration(row))
    rate = None if mine is None else _cell(mine, "tok_s")
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
        told = f"100 × {_told(rate.value)} ÷ ({count} × {_told(one.value)})"
        yield "efficiency_pct", _quotient(rate, times, 100, told)


def _quotient(over: Cell, under: Cell, factor: float = 1.0, reason: str | None = None) -> _Computed:
    """A quotient, and how far it may be off for the rounding of both."""
    value = factor * over.value / under.value
    low = factor * (over.value - over.half_unit) / (under.value + under.half_unit)
    least = under.value - under.half_unit
    high = factor * (over.value + over.half_unit) / least if least > 0 else float("inf")
    return _Computed(value, max(high - value, value - low), reason or f"{_told(over.value)} ÷ {_told(under.value)}")


def _told(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"


def _cell(row: PublishedRow, column: str) -> Cell | None:
    """A row's figure with its rounding; exact where it was not printed."""
    value = getattr(row, column)
    printed = row.printed.get(column)
    return number(printed) if printed is not None else None if value is None else Cell(value, 0)


def _configuration(row: PublishedRow) -> tuple[Any, ...]:
    return row.source, repr(row.work), row.sku, row.gpu_count


@functools.cache
def _builtin() -> tuple[tuple[PublishedSource, tuple[PublishedRow, ...]], ...]:
    import yaml

    from lorawatch.published_csv import parse

    files = {file.name: file for file in _files()}
    tables = []
    for name, file in files.items():
        if not name.endswith(".yaml"):
            continue
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
        source = PublishedSource(
            source=facts["source"],
            publisher=facts["publisher"],
            title=facts["title"],
            method=facts["method"],
            work=facts["work"],
            files=tuple(facts["tables"]),
            skus=facts["skus"],
            notes=tuple(
                (n["text"], tuple((r["sku"], r["gpu_count"]) for r in n["rows"])) for n in facts.get("notes", ())
            ),
            url=facts.get("url"),
        )
        rows = [
            replace(row, title=source.title, url=source.url, work=source.work, note=_note(row, source.notes))
            for table in source.files
            for row in parse(files[table].read_text(encoding="utf-8"), table, source.source, source.skus.__getitem__)
        ]
        tables.append((source, tuple(rows)))
    return tuple(tables)


def _note(row: PublishedRow, notes: Sequence[tuple[str, tuple[tuple[str, int], ...]]]) -> str | None:
    if row.tok_s is None:  # the notes are about the throughput table
        return None
    return " ".join(text for text, rows in notes if (row.sku, row.gpu_count) in rows) or None


def _files() -> list[Any]:
    folder = resources.files("lorawatch.assets") / "published"
    return sorted((f for f in folder.iterdir() if f.name.endswith((".yaml", ".csv"))), key=lambda f: f.name)
