"""The rows of the list of runs: what its columns show, their sort keys and their widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lorawatch.screens.runs.words import one_line, state_words, where_words
from lorawatch.text.numbers import MISSING, duration, gib, number


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: The row's value that it shows and sorts by.
        least, most: Its least width, and the width it grows to where there is room.
        right: Whether it is set to the right.
        down: Whether sorting begins with the highest.
    """

    heading: str
    key: str
    least: int
    most: int
    right: bool = False
    down: bool = False


COLUMNS = (  # the first ones fit 80 columns; left and right scroll to the others
    Column("run", "run_id", 8, 8, down=True),
    Column("recipe", "name", 12, 26),
    Column("state", "state", 14, 26),
    Column("where", "sku", 14, 26),
    Column("tok/s", "tok_s", 7, 9, right=True, down=True),
    Column("tok/J", "tok_per_j", 5, 7, right=True, down=True),
    Column("loss", "final_loss", 5, 7, right=True),
    Column("time", "duration_s", 8, 9, right=True, down=True),
    Column("VRAM", "peak_vram_bytes", 8, 9, right=True, down=True),
    Column("tags", "tags", 10, 40),
    Column("steps", "steps", 6, 9, right=True, down=True),
)


def load_runs() -> list[dict[str, Any]]:
    """All runs of the history, latest first, each with the text for the filter as `search`."""
    from lorawatch.run.liveness import note
    from lorawatch.storage.queries import list_runs

    rows = list_runs(limit=None, deadline_s=0.5)
    where: dict[tuple[Any, ...], str] = {}
    for row in rows:
        place = row["sku"], row["gpu_count"], row["world_size"], row["device"]
        if place not in where:
            where[place] = f"{where_words(row)} {row['sku'] or ''}"
        row["note"] = note(row["run_id"], row["state"])
        row["search"] = (
            f"{row['run_id']} {row['name']} {row['state']} {row['failure'] or ''} {where[place]} "
            f"{' '.join(row['tags'] or ())}"
        ).lower()
    return rows


def widths(room: int) -> list[int]:
    """The width of each column in a table of `room` characters; where not all fit, each has its least."""
    letters = [c.least for c in COLUMNS]
    spare = room - sum(letters) - 2 * len(COLUMNS)
    while spare > 0:
        growing = [i for i, c in enumerate(COLUMNS) if letters[i] < c.most]
        if not growing:
            break
        for index in growing[:spare]:
            letters[index] += 1
        spare -= len(growing[:spare])
    return letters


def sort_key(row: dict[str, Any], key: str) -> Any:
    """The sort key of a column; None for an unknown value, which comes last in either order."""
    value = row[key]
    if key == "sku":
        return (where_words(row).partition("×")[2].lower(), row["gpu_count"] or row["world_size"] or 0)
    if value in (None, []) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if key == "state":
        return f"{value} {row['failure'] or ''}"
    return value.lower() if isinstance(value, str) else value


def cells(row: dict[str, Any], *, narrow: bool) -> list[str]:
    """The row's texts, in the order of `COLUMNS`."""
    state = state_words(row)
    if narrow and row["failure"]:  # the glyph shows that it failed
        state = f"{state[0]} {one_line(row['failure'])}"
    return [
        one_line(row["run_id"]), one_line(row["name"]), state, where_words(row), number(row["tok_s"]),
        number(row["tok_per_j"], 1), number(row["final_loss"], 3), duration(row["duration_s"]), gib(row["peak_vram_bytes"]),
        " ".join(one_line(t) for t in row["tags"] or ()), MISSING if row["steps"] is None else f"{row['steps']:,}",
    ]  # fmt: skip
