"""A published table as a CSV file: its columns, and reading it with every cell checked."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorawatch.analysis.epoch import parse_tokens
from lorawatch.errors import UsageError
from lorawatch.published.printed import number, seconds
from lorawatch.published.rows import PublishedRow
from lorawatch.system.user_files import read_bounded
from lorawatch.text.sanitize import clean

LARGEST = 16 << 20
_LONGEST_TEXT = 1000
_EMPTY = frozenset({"", "-", "–", "—", "n/a", "na"})
_HINT = "lorawatch import --help says what each column holds"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Column:
    """A column that a table may have.

    Attributes:
        name: As in `published_results`, or a key of a recipe.
        holds: What it holds, for the command's help.
        allowed: What a cell may be, as the error message says it behind "is not".
        read: A cell's value; raises ValueError.
        also: Other headings of published tables.
        work: Section and key of a recipe, for a column that describes the measured work.
    """

    name: str
    holds: str
    allowed: str
    read: Callable[[str], Any]
    also: tuple[str, ...] = ()
    work: tuple[str, str] | None = None


def _figure(*units: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = number(text, ("", *units)).value
        if not 0 < value < 1e15:
            raise ValueError(text)
        return value

    return read


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,9})\s*[×x]?", text)
        if match is None or not least <= int(match[1]) <= most:
            raise ValueError(text)
        return int(match[1])

    return read


def _text(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(text)
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text):
        raise ValueError(text)
    return _text(text)


def _time(text: str) -> str:
    if not 0 < seconds(text).value < 1e12:
        raise ValueError(text)
    return text


def _dtype(text: str) -> str:
    name = _DTYPES.get(text.lower(), text.lower())
    if name not in _DTYPES.values():
        raise ValueError(text)
    return name


_TEXT = f"text of at most {_LONGEST_TEXT} characters"
_COUNT = "a whole number from 1 to 10,000,000"
COLUMNS = (
    Column("sku", "the GPU model", f"a name of at most {_LONGEST_TEXT} characters", _text, ("gpu",)),
    Column("gpu_count", "GPUs used", _COUNT, _whole(1, 10_000_000), ("gpus",)),
    Column("tok_s", "tokens a second of all GPUs", "a figure over 0 (10717, 10,717)", _figure("tok/s"), ("aggregate_tok_s",)),
    Column("tok_s_per_gpu", "tokens a second of each GPU", "a figure over 0 (2679)", _figure("tok/s")),
    Column("scaling", "tok/s over tok/s of one GPU", "a figure over 0 (3.86, 3.86×)", _figure("×", "x")),
    Column("efficiency_pct", "scaling efficiency, percent", "a figure over 0 (96.5, 96.5%)", _figure("%")),
    Column("avg_power_w", "mean power, watts", "a figure over 0 (771.7)", _figure("w")),
    Column("tok_per_j", "tokens a joule, tok/s a watt", "a figure over 0 (13.9)", _figure("tok/s/w", "tok/j"), ("tok_s_per_w",)),
    Column("dataset", "a data set's name", _TEXT, _text),
    Column("dataset_tokens", "its tokens", "a whole number over 0 (50000000, 5e7, 50M)", parse_tokens, ("tokens",)),
    Column("epoch_time", "time of an epoch over it", "a time over 0 (~1.3 hr, 30 min, 5.4 days)", _time, ("published",)),
    Column("model", "the model", _TEXT, _text, work=("model", "name")),
    Column("dtype", "number format of the base weights", "bfloat16, float16 or float32", _dtype, work=("model", "dtype")),
    Column("lora_rank", "the adapter's rank", _COUNT, _whole(1, 10_000_000), work=("lora", "rank")),
    Column("sequence_length", "tokens of an example", _COUNT, _whole(1, 10_000_000), work=("data", "sequence_length")),
    Column("batch_size_per_gpu", "examples a step on a GPU", _COUNT, _whole(1, 10_000_000), work=("train", "batch_size_per_gpu")),
    Column("source", "who published it", _TEXT, _text),
    Column("url", "where", "an address that begins with http:// or https://", _url),
    Column("note", "what to know about the row", _TEXT, _text),
)  # fmt: skip
_FIGURES = ("tok_s", "tok_s_per_gpu", "scaling", "efficiency_pct", "avg_power_w", "tok_per_j", "epoch_time")
_REQUIRED = ("sku", "gpu_count")


@dataclass(frozen=True)
class _Problem:
    line: int
    column: str
    value: str
    allowed: str


def read_csv(path: Path, *, source: str | None = None, named: Callable[[str], str] = str) -> list[PublishedRow]:
    """Read a table; `COLUMNS` documents its columns.

    Args:
        path: A CSV file, UTF-8, with a header.
        source: The rows' source where the file has no such column; default: the file's name.
        named: A GPU's short name from its printed one.

    Raises:
        UsageError: The file cannot be read, a column is unknown, or a cell is not what its column allows; the message names
            the first such line and column, the value, what is allowed, and how many more there are.
    """
    try:
        raw = read_bounded(path, LARGEST)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", hint="a published table is a few rows in a CSV file"
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {line} is not UTF-8 text", hint="save it as CSV in UTF-8") from None
    return parse(text, clean(str(path)), source or clean(path.stem), named)


def parse(text: str, where: str, source: str, named: Callable[[str], str]) -> list[PublishedRow]:
    """Rows of a table's text; the arguments and errors are `read_csv`'s, `where` names the file in messages."""
    lines = _lines(text, where)
    header_line, header = next(lines, (1, []))
    if not any(header):
        raise UsageError(f"{where} is empty", hint=f"its first line names the columns; {_HINT}")
    columns = _columns(header, f"{where} line {header_line}")
    rows: list[PublishedRow] = []
    problems: list[_Problem] = []
    seen: dict[Any, int] = {}
    for line, cells in lines:
        if not any(cells):
            continue
        row = _row(line, cells, columns, source, named, problems)
        if row is None:
            continue
        key = (row.source, repr(row.work), row.sku, row.gpu_count, row.dataset, row.dataset_tokens, row.tok_s is None)
        if key in seen:
            allowed = f"a configuration of its own: line {seen[key]} has it already"
            problems.append(_Problem(line, "sku", row.printed["sku"], allowed))
        seen.setdefault(key, line)
        rows.append(row)
    if problems:
        first, more = problems[0], len(problems) - 1
        shown = first.value if len(first.value) <= 60 else first.value[:59] + "…"
        others = f"; {more} more cell{'' if more == 1 else 's'} cannot be taken" if more else ""
        raise UsageError(
            f"{where} line {first.line}, column {first.column}: {shown!r} is not {first.allowed}{others}", hint=_HINT
        )
    if not rows:
        raise UsageError(f"{where} has columns and no rows", hint=_HINT)
    return rows


def _lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line number of each record's beginning, and its cells, stripped and harmless."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"{where} line {line} is no CSV: {error}", hint="check its quotes") from None
        yield line, [" ".join(clean(cell).split()) for cell in cells]


def _columns(header: list[str], where: str) -> list[Column]:
    """The header's columns.

    Raises:
        UsageError: One is unknown or there twice, or one that every table needs is missing.
    """
    known = {name: column for column in COLUMNS for name in (column.name, *column.also)}
    columns: list[Column] = []
    for heading in header:
        name = re.sub(r"[\s/-]+", "_", heading.lower())
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(c.name for c in COLUMNS)}"
            if ";" in heading and len(header) == 1:
                hint = "cells are separated by commas"
            raise UsageError(f"{where}: there is no column {heading[:60]!r}", hint=hint)
        if known[name] in columns:
            raise UsageError(f"{where}: column {known[name].name} is there twice", hint="keep one of them")
        columns.append(known[name])
    for required in _REQUIRED:
        if known[required] not in columns:
            raise UsageError(f"{where}: column {required} is missing", hint=_HINT)
    return columns


@dataclass
class _Cells:
    """A row's cells as read: figures and names, those that say which work was measured, and the texts as printed."""

    values: dict[str, Any] = field(default_factory=dict)
    work: dict[str, dict[str, Any]] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)

    def add(self, column: Column, cell: str, value: Any) -> None:
        self.printed[column.name] = cell
        if column.work is None:
            self.values[column.name] = value
        else:
            section, key = column.work
            self.work.setdefault(section, {})[key] = value


def _row(
    line: int,
    cells: list[str],
    columns: list[Column],
    source: str,
    named: Callable[[str], str],
    problems: list[_Problem],
) -> PublishedRow | None:
    """A row, or None with what is wrong added to the problems."""
    if len(cells) != len(columns):
        problems.append(_wrong_count(line, cells, columns))
        return None
    read, wrong = _read_cells(line, cells, columns)
    if not wrong and not read.values.keys() & set(_FIGURES):
        wrong = [_no_figure(line, columns)]
    if wrong:
        problems += wrong
        return None
    values = {"source": source, **read.values, "sku": named(read.values["sku"])}
    if "epoch_time" in values:
        values["epoch_s"] = seconds(values["epoch_time"]).value
    return PublishedRow(**values, work=read.work or None, printed=read.printed)


def _read_cells(line: int, cells: list[str], columns: list[Column]) -> tuple[_Cells, list[_Problem]]:
    """Every cell that is not empty; a cell that its column does not allow, or an empty one that is needed, is a problem."""
    read, wrong = _Cells(), []
    for column, cell in zip(columns, cells, strict=True):
        empty = cell.lower() in _EMPTY
        if empty and column.name not in _REQUIRED:
            continue
        try:
            if empty:
                raise ValueError(cell)
            read.add(column, cell, column.read(cell))
        except ValueError:
            wrong.append(_Problem(line, column.name, cell, column.allowed))
    return read, wrong


def _wrong_count(line: int, cells: list[str], columns: list[Column]) -> _Problem:
    """A line with fewer or more cells than the header has columns, at the first that is missing or too many."""
    allowed = f"one of the {len(columns)} cells that the header names; the line has {len(cells)}"
    if len(cells) < len(columns):
        return _Problem(line, columns[len(cells)].name, "", allowed)
    return _Problem(line, f"{len(columns) + 1}", cells[len(columns)], allowed)


def _no_figure(line: int, columns: list[Column]) -> _Problem:
    names = [column.name for column in columns if column.name in _FIGURES]
    allowed = f"a figure: a row needs one of {', '.join(names or _FIGURES)}"
    return _Problem(line, names[0] if names else "tok_s", "", allowed)


def column_help() -> Mapping[str, str]:
    """What each column holds and what its cells may be, by name."""
    return {
        column.name: f"{column.holds}; {column.allowed}"
        + (f"; also called {', '.join(column.also)}" if column.also else "")
        for column in COLUMNS
    }
