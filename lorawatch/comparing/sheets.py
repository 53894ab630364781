"""Rows of words as tables: for a terminal, for Markdown; and what a spreadsheet's cell may hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FORMULAS = "=+-@|%＝＋－＠"


def csv_cell(value: Any) -> Any:
    """A cell as CSV holds it: a missing figure is empty, and no text is a formula.

    A spreadsheet takes text for a formula that begins with one of these, in full width too, maybe after white space or a
    character without a width.
    """
    if isinstance(value, str):
        text = " ".join(value.split())
        seen = next((c for c in text if not c.isspace() and unicodedata.category(c) != "Cf"), "")
        return "'" + text if seen and seen in _FORMULAS else text
    return "" if value is None else value


def ruled(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> list[str]:
    lines = [list(headings), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]

    def one(line: Sequence[str]) -> str:
        return "  ".join(
            text.rjust(wide) if to_right else text.ljust(wide)
            for text, wide, to_right in zip(line, widths, right, strict=True)
        ).rstrip()

    return [one(lines[0]), "  ".join("─" * w for w in widths), *(one(line) for line in lines[1:])]


def split(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """Which columns stand in which table; the first column stands in each."""
    wide = [max(len(headings[i]), *(len(r[i]) for r in rows)) for i in range(len(headings))]
    if width is None:
        return [list(range(len(headings)))]
    parts, used = [[0]], wide[0]
    for index in range(1, len(headings)):
        if used + 2 + wide[index] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = wide[0]
        parts[-1].append(index)
        used += 2 + wide[index]
    return parts


def piped(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(escaped(c) for c in cells) + " |"

    return [line(headings), "|" + "|".join("---:" if r else "---" for r in right) + "|", *(line(r) for r in rows)]


def escaped(text: str) -> str:
    """Text from outside as Markdown shows it: no pipe ends a cell, no tag is a tag, no letter begins a list."""
    text = " ".join(text.split())
    for letter in ("\\", "|", "`", "*", "_", "[", "]", "~", "#"):
        text = text.replace(letter, "\\" + letter)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A titled table of words; `right` marks the columns that are set to the right."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """Sentences for the top, tables and notes; `records` are the same figures unrounded, for programs."""

    title: str
    work: str
    answer: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
