"""The published tables that the package ships."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from lorawatch.published.rows import PublishedRow, PublishedSource
from lorawatch.published.table_csv import parse
from lorawatch.system.version import __version__


def builtin_sources() -> tuple[PublishedSource, ...]:
    """The tables that the package ships."""
    return tuple(source for source, _ in _builtin())


def builtin_rows() -> tuple[PublishedRow, ...]:
    """The rows of the tables that the package ships."""
    return tuple(row for _, rows in _builtin() for row in rows)


@functools.cache
def builtin_digest() -> str:
    """A checksum of the package's version and table files; reads them without parsing."""
    checksum = zlib.crc32(__version__.encode())
    for file in _files():
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return f"{checksum:08x}"


@functools.cache
def _builtin() -> tuple[tuple[PublishedSource, tuple[PublishedRow, ...]], ...]:
    import yaml

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
