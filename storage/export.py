"""A query's answer as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.errors import UsageError
from lorawatch.files import write_atomically
from lorawatch.permissions import export_mode
from lorawatch.sanitize import clean, json_text
from lorawatch.storage.sql import Result, copy_select, run_select

_WIDEST = 60


def write_result(query: str, form: str, output: Path | None = None, *, timeout_s: float = 60.0) -> None:
    """Answer a query on stdout, or in a file that is replaced as a whole.

    Args:
        form: `table`, `csv`, `json` (an array, one object a line) or `parquet` (a file only).

    Raises:
        UsageError: The query or the combination is wrong.
        HistoryError: The history cannot answer.
        OSError: The file cannot be written.
    """
    if form == "parquet":
        if output is None:
            raise UsageError("parquet is no text", hint="name a file: -o FILE")
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        mode = export_mode(output)
        try:
            copy_select(query, temporary, timeout_s=timeout_s)
            temporary.chmod(mode)
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
        return
    lines = {"table": table, "csv": csv_lines, "json": json_array}[form](run_select(query, timeout_s=timeout_s))
    if output is not None:
        mode = export_mode(output)
        write_atomically(output, "".join(lines).encode("utf-8", "backslashreplace"))
        output.chmod(mode)
        return
    try:
        for line in lines:
            sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; nothing more may be written, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def csv_lines(result: Result) -> Iterator[str]:
    """CSV with a header; a missing value is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(result.columns)
    yield _drained(buffer)
    for row in result.rows:
        writer.writerow([_csv_value(v) for v in row])
        yield _drained(buffer)


def json_array(result: Result) -> Iterator[str]:
    """One JSON array of objects, one object a line; what JSON cannot say (NaN) is null."""
    for number, row in enumerate(result.rows):
        pairs = {name: _plain(value) for name, value in zip(result.columns, row, strict=True)}
        yield ("[" if number == 0 else ",\n ") + json_text(pairs, enc_hook=str)
    yield "]\n" if result.rows else "[]\n"


def table(result: Result) -> Iterator[str]:
    """Aligned columns for people: numbers to the right, long text cut, a missing value as a dash."""
    if result.columns == ["plan"]:  # EXPLAIN draws a table of its own
        yield from (f"{row[0]}\n" for row in result.rows)
        return
    right = [_is_number(kind) for kind in result.types]
    cells = [[_cell(value) for value in row] for row in result.rows]
    head = [clean(name) for name in result.columns]
    widths = [min(max([_width(head[i]), *(_width(row[i]) for row in cells)]), _WIDEST) for i in range(len(head))]
    yield _line(head, widths, right)
    yield "  ".join("─" * width for width in widths) + "\n"
    for row in cells:
        yield _line(row, widths, right)
    count = len(result.rows)
    yield f"({count:,} row{'' if count == 1 else 's'}{', more left out' if result.cut else ''})\n"


def _line(cells: Iterable[str], widths: list[int], right: list[bool]) -> str:
    parts = []
    for text, width, to_right in zip(cells, widths, right, strict=True):
        if _width(text) > width:
            text = text[: width - 1] + "…"
        gap = " " * max(width - _width(text), 0)
        parts.append(gap + text if to_right else text + gap)
    return "  ".join(parts).rstrip() + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.1f}"
    return clean(str(_nested(value))).replace("\n", "⏎").replace("\t", " ")


def _csv_value(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else _nested(value)


def _nested(value: Any) -> Any:
    """Lists and structs as JSON text."""
    return (
        msgspec.json.encode(_plain(value), enc_hook=str).decode() if isinstance(value, (list, dict, tuple)) else value
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


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
