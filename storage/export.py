"""A query's answer as a table, CSV, JSON or Parquet, written while it is read."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.errors import HistoryDamaged, LorawatchError, UsageError
from lorawatch.storage.outlet import NotWritten, Outlet, replacing
from lorawatch.storage.sql import Answer, answering, copy_select
from lorawatch.text.sanitize import clean, json_text

_WIDEST = 60
_LOOKED_AT = 1000
_NOT_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)')
_Lines = Callable[[Answer], Iterator[str]]


def write_result(
    query: str,
    form: str,
    output: Path | None = None,
    *,
    timeout_s: float = 60.0,
    on_answered: Callable[[], None] = lambda: None,
) -> None:
    """Answer a query on stdout, or in a file that is replaced as a whole.

    Args:
        form: `table`, `csv`, `json` (an array, one object a line) or `parquet` (a file only).
        on_answered: Called when the history is closed again; the answer may not be written completely yet.

    Raises:
        UsageError: The query or the combination is wrong.
        HistoryError: The history cannot answer.
        LorawatchError: The file cannot be written.
    """
    if form == "parquet" and output is None:
        raise UsageError("parquet is no text", hint="name a file: -o FILE")
    lines: dict[str, _Lines] = {"table": table, "csv": csv_lines, "json": json_array}
    if output is None:
        _to_stdout(query, lines[form], timeout_s, on_answered)
        return
    try:
        with replacing(output) as temporary:
            if form == "parquet":
                copy_select(query, temporary, timeout_s=timeout_s)
            else:
                _to_file(query, lines[form], temporary, timeout_s)
            on_answered()
    except (OSError, NotWritten) as failure:
        error = failure.error if isinstance(failure, NotWritten) else failure
        raise LorawatchError(
            f"{output} cannot be written: {error.strerror or error}", hint="choose another place with -o"
        ) from None


def _to_file(query: str, lines: _Lines, path: Path, timeout_s: float) -> None:
    with (
        open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        answering(query, timeout_s=timeout_s) as answer,
    ):
        for line in lines(answer):
            try:
                file.write(line)
            except OSError as error:
                raise NotWritten(error) from None


def _to_stdout(query: str, lines: _Lines, timeout_s: float, on_answered: Callable[[], None]) -> None:
    stream = sys.stdout if sys.stdout is not None else open(os.devnull, "w")  # noqa: SIM115  as long as the process
    outlet = Outlet(stream, timeout_s)
    try:
        with outlet:
            try:
                with answering(query, timeout_s=timeout_s) as answer:
                    for line in lines(answer):
                        outlet.put(line)
            except HistoryDamaged as error:
                error.answered = outlet.begun
                raise
            on_answered()
    except NotWritten as failure:
        if not isinstance(failure.error, BrokenPipeError):
            why = failure.error.strerror or failure.error
            raise LorawatchError(f"standard output cannot be written: {why}", hint="name a file: -o FILE") from None
        # `| head` has ended; nothing more may be written, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def csv_lines(answer: Answer) -> Iterator[str]:
    """CSV with a header; a missing value is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(answer.columns)
    other: dict[int, Callable[[Any], Any]] = {i: _truth for i, kind in enumerate(answer.types) if kind == "BOOLEAN"}
    other |= {i: _finite for i, nested in enumerate(answer.nested) if nested}
    for batch in answer.batches:
        writer.writerows(_changed(row, other) for row in batch) if other else writer.writerows(batch)
        yield _drained(buffer)
    yield _drained(buffer)


def json_array(answer: Answer) -> Iterator[str]:
    """One JSON array of objects, one object a line; values that JSON lacks (NaN) are null."""
    empty = True
    nested = {i: _raw for i, is_nested in enumerate(answer.nested) if is_nested}
    for row in chain.from_iterable(answer.batches):
        pairs = dict(zip(answer.columns, _changed(row, nested) if nested else row, strict=True))
        yield ("[" if empty else ",\n ") + json_text(pairs, enc_hook=str)
        empty = False
    yield "[]\n" if empty else "]\n"


def table(answer: Answer) -> Iterator[str]:
    """Aligned columns for people: numbers to the right, long text cut, a missing value as a dash.

    Columns are as wide as the first 1,000 rows need; a longer value further down moves its line.
    """
    rows = chain.from_iterable(answer.batches)
    if answer.columns == ["plan"]:  # EXPLAIN draws a table of its own
        yield from (f"{row[0]}\n" for row in rows)
        return
    right = [_is_number(kind) for kind in answer.types]
    head = [clean(name) for name in answer.columns]
    first = [[_cell(value) for value in row] for row in islice(rows, _LOOKED_AT)]
    widths = [min(max([_width(head[i]), *(_width(row[i]) for row in first)]), _WIDEST) for i in range(len(head))]
    yield _line(head, widths, right)
    yield "  ".join("─" * width for width in widths) + "\n"
    count = 0
    for cells in chain(first, ([_cell(value) for value in row] for row in rows)):
        count += 1
        yield _line(cells, widths, right)
    yield f"({count:,} row{'' if count == 1 else 's'})\n"


def _line(cells: Iterable[str], widths: list[int], right: list[bool]) -> str:
    parts = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        if _width(text) > _WIDEST:
            text = text[: _WIDEST - 1] + "…"
        gap = " " * max(width - _width(text), 0)
        parts.append(gap + text if to_right else text + gap)
    return "  ".join(parts).rstrip() + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return _truth(value)
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.1f}"
    # cut first: one text may fill the memory; escapes are cleaned in the shown part
    text = value[: 20 * _WIDEST] if isinstance(value, str) else str(value)[: 20 * _WIDEST]
    return clean(text).replace("\n", "⏎").replace("\t", " ")[: 2 * _WIDEST]


def _changed(row: tuple[Any, ...], how: Mapping[int, Callable[[Any], Any]]) -> list[Any]:
    """The row with some of its values changed, where they are not missing."""
    values = list(row)
    for index, change in how.items():
        if values[index] is not None:
            values[index] = change(values[index])
    return values


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(_finite(text).encode())


def _finite(text: str) -> str:
    """JSON as DuckDB writes it, without the numbers that JSON does not have."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return _NOT_JSON.sub(lambda match: match[0] if match[0].startswith('"') else "null", text)


def _is_number(kind: str) -> bool:
    return (
        kind.startswith(("DECIMAL", "DOUBLE", "FLOAT"))
        or (kind.endswith("INT") and "[" not in kind)
        or kind == "INTEGER"
    )


def _width(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _drained(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
