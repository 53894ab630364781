"""Reads rows from files and from the hub. Each row has its place of origin, so that an error can name file and line."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lorawatch.errors import DataError, MissingDependency
from lorawatch.models import hub
from lorawatch.recipe.loading import SUFFIXES
from lorawatch.system.user_files import expanded


@dataclass(frozen=True)
class Row:
    """One row, and where it comes from: `chat.jsonl, line 12`."""

    fields: dict[str, Any]
    where: str


def read_rows(source: str, split: str = "train", key: str = "data.source") -> Iterator[Row]:
    """The rows of the demo data, of a file, or of a hub data set.

    Args:
        source: `data.source` of a recipe, but not `synthetic`.
        split: Of a hub data set.
        key: The recipe's key that names the source, for messages.

    Raises:
        DataError: The source is missing, unreadable, empty or broken; the message names file and line.
        MissingDependency: The package that reads it is missing.
    """
    if source == "demo":
        with resources.as_file(resources.files("lorawatch.assets") / "data" / "demo_chat.jsonl") as path:
            yield from _not_empty(_json_lines(path), str(path))
        return
    path = expanded(source)
    if path.is_file():
        yield from _not_empty(_file(path, key), source)
    elif path.suffix in SUFFIXES or source.startswith(("/", "./", "../", "~")):
        raise DataError(f"{key} is {source!r}: {'a folder' if path.is_dir() else 'no such file'}", hint=_allowed())
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        yield from _not_empty(_hub(source, split, key), source)
    else:
        raise DataError(f"{key} is {source!r}, which is neither a file nor a hub id", hint=_allowed())


def _not_empty(rows: Iterator[Row], where: str) -> Iterator[Row]:
    empty = True
    try:
        for row in rows:
            empty = False
            yield row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte {error.start} of a block)", hint="convert it: iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise DataError(f"{where}: the data set is empty")


def _file(path: Path, key: str) -> Iterator[Row]:
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{key} is {str(path)!r}: unknown kind of file {path.suffix!r}", hint=_allowed())
    yield from reader(path)


def _json_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row(_object(line, f"{path}, line {number}"), f"{path}, line {number}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is a JSON object, not {type(value).__name__}")
    return value


def _json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # the file holds JSON lines
            yield from _json_lines(path)
            return
        if not text.strip():
            return
        raise DataError(f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}") from error
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        value = (
            value["data"]
            if isinstance(value.get("data"), list)
            else lists[0]
            if len(lists) == 1 and len(value) == 1
            else [value]
        )
    if not isinstance(value, list):
        raise DataError(f"{path}: neither a list of objects nor an object")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: a row is a JSON object, not {type(row).__name__}")
        yield Row(row, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or any(v is None for v in row.values()):
                    raise DataError(f"{where}: {len(reader.fieldnames or [])} fields expected, as the first line has")
                yield Row(dict(row), where)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: broken CSV: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingDependency(f"{path}: the package pyarrow reads Parquet", hint="pip install pyarrow") from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, f"{path}, row {number}")
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error


def _text(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Row({"text": line.rstrip("\n")}, f"{path}, line {number}")


def _hub(name: str, split: str, key: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise MissingDependency(
            f"{key} is {name!r}: the package datasets reads hub data sets", hint="pip install datasets"
        ) from None
    if not hub.hub_reachable():
        datasets.config.HF_HUB_OFFLINE = True  # use the cache only, without retries
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises errors of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"{key} is {name!r}: no such file, and the hub data set (split {split!r}) cannot be loaded: {first}",
            hint=f"check the name, {key.replace('source', 'split')} and the network; or give a file: "
            + ", ".join(SUFFIXES),
        ) from error
    for number, fields in enumerate(loaded, 1):
        yield Row(dict(fields), f"{name} ({split}), row {number}")


def _allowed() -> str:
    return f"synthetic, demo, a file ({', '.join(SUFFIXES)}), or a hub id"
