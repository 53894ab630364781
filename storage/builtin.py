"""Published rows in the history, and updates of the package's own tables there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from lorawatch.published.builtin import builtin_digest, builtin_rows
from lorawatch.published.checks import differences
from lorawatch.published.rows import PublishedRow
from lorawatch.storage.engine import Connection, roll_back

# in the order of PublishedRow's fields; the last two are the history's own
COLUMNS = (*PublishedRow.__dataclass_fields__, "differs", "builtin")
_TYPES = {
    "gpu_count": "INTEGER",
    **dict.fromkeys(
        ("tok_s", "tok_s_per_gpu", "scaling", "efficiency_pct", "avg_power_w", "tok_per_j", "epoch_s"), "DOUBLE"
    ),
    "dataset_tokens": "BIGINT",
    "printed": "JSON",
    "work": "JSON",
    "differs": "VARCHAR[]",
}
_SHAPE = msgspec.json.encode([{name: _TYPES.get(name, "VARCHAR") for name in COLUMNS}]).decode()


def refresh(connection: Connection) -> bool:
    """Update the package's tables in the history to those of this version; one small query where they are current.

    Returns:
        Whether they were outdated.
    """
    # Where two versions of lorawatch write to one history, each write replaces the tables, which costs a millisecond.
    row = connection.execute("SELECT builtin FROM published_results WHERE builtin IS NOT NULL LIMIT 1").fetchone()
    if row is not None and row[0] == builtin_digest():
        return False
    connection.execute("BEGIN")
    try:
        connection.execute("DELETE FROM published_results WHERE builtin IS NOT NULL")
        insert(connection, builtin_rows(), builtin_digest())
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return True


def insert(connection: Connection, rows: Sequence[PublishedRow], builtin: str | None = None) -> None:
    """Insert rows, with the names of the cells that do not follow from their table's own figures."""
    wrong = _differing(rows)
    lines = [
        {
            **{name: getattr(row, name) for name in PublishedRow.__dataclass_fields__},
            "differs": wrong.get(id(row), []),
            "builtin": builtin,
        }
        for row in rows
    ]
    connection.execute(
        f"INSERT INTO published_results BY NAME SELECT unnest(from_json(?, '{_SHAPE}'), recursive := true)",
        [msgspec.json.encode(lines).decode()],
    )


def _differing(rows: Iterable[PublishedRow]) -> dict[int, list[str]]:
    columns_by_row: dict[int, list[str]] = {}
    for difference in differences(rows):
        columns_by_row.setdefault(id(difference.row), []).append(difference.column)
    return columns_by_row
