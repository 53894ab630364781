"""A consistent copy of the history in a file of its own, for any other program."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lorawatch.errors import HistoryError, UsageError
from lorawatch.storage import files
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Connection
from lorawatch.storage.sql import MEMORY


def snapshot(target: Path, *, force: bool = False, history: Path | None = None) -> None:
    """Copy the history, as it is at one moment, into a file; runs continue and their rows wait.

    The copy is made beside the target and moved into place when it is complete; only its owner may read it.

    Args:
        force: Replace an existing file.

    Raises:
        UsageError: The target exists already, or its folder does not.
        HistoryBusy: A writer held the history for 2 s.
        HistoryError: The history cannot be read, or the copy cannot be written.
    """
    target = target.absolute()
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="--force replaces it")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}")
    if files.same(target, history):
        raise UsageError(f"{target} is the history itself", hint="name another file")
    try:
        # In a folder of its own, so that no other user reads the copy, or its log, before it has its mode.
        with tempfile.TemporaryDirectory(prefix=f".lorawatch-{os.getpid()}-", dir=target.parent) as folder:
            copy = Path(folder) / "copy.duckdb"
            with reading(history, config={"memory_limit": MEMORY}) as connection:
                _copy(connection, copy)
            copy.chmod(0o600)
            copy.replace(target)
    except OSError as error:
        raise HistoryError(
            f"{target} cannot be written: {error.strerror or error}", hint="name a file in another folder"
        ) from error


def _copy(connection: Connection, copy: Path) -> None:
    place = str(copy).replace("'", "''")
    row = connection.execute("SELECT current_database()").fetchone()
    name = str(row[0]).replace('"', '""') if row else ""
    connection.execute(f"ATTACH '{place}' AS lorawatch_copy (READ_WRITE, STORAGE_VERSION '{files.STORAGE}')")
    connection.execute(f'COPY FROM DATABASE "{name}" TO lorawatch_copy')
    connection.execute("DETACH lorawatch_copy")
