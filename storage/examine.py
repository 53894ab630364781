"""Reads a whole history, so that damage shows: opening a file reads almost nothing of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lorawatch.errors import HistoryError
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Error, duckdb
from lorawatch.storage.explain import damaged, explain
from lorawatch.system import home


@dataclass(frozen=True)
class Examined:
    """What was read of a history that shows no damage.

    Attributes:
        rows: Rows of the tables that were read.
        unread: Tables that were not read within the time limit.
    """

    rows: int
    unread: tuple[str, ...]


def examine(path: Path | None = None, *, budget_s: float = 10.0) -> Examined:
    """Read every value of every table; recorders wait with their rows at most for the time limit.

    Args:
        path: The history file; default: the home's.
        budget_s: Reading ends after this; the largest tables come last.

    Raises:
        HistoryDamaged: It is damaged, or was and is not whole again.
        HistoryBusy: A writer held it for 2 s.
        HistoryError: There is none, or it cannot be read.
    """
    path = path or home.history_file()
    until = time.monotonic() + budget_s
    rows = 0
    with reading(path, partial=True) as connection:
        tables = connection.execute(
            "SELECT table_name, estimated_size FROM duckdb_tables() WHERE NOT internal AND schema_name = 'main' "
            "ORDER BY estimated_size"
        ).fetchall()
        timer = threading.Timer(budget_s, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            for number, (name, size) in enumerate(tables):
                quoted = '"' + name.replace('"', '""') + '"'
                try:
                    if time.monotonic() >= until:
                        raise duckdb.InterruptException
                    connection.execute(f"SELECT bit_xor(hash(COLUMNS(*))) FROM {quoted}").fetchall()  # noqa: S608
                except duckdb.InterruptException:
                    return Examined(rows, tuple(t for t, _ in tables[number:]))
                except duckdb.OutOfMemoryException:
                    raise
                except Error as error:
                    failure = explain(error, path)
                    if type(failure) is HistoryError:  # a plain read of all values: a failure is damage
                        failure = damaged(path, str(error).splitlines()[0])
                    raise failure from None
                rows += size
        finally:
            timer.cancel()
    return Examined(rows, ())
