"""The history file as a file: made so that a crash leaves all of it or nothing, and set aside where it is damaged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from lorawatch import paths
from lorawatch.storage import schema
from lorawatch.storage.engine import duckdb

log = logging.getLogger("lorawatch.storage")
# The format that the DuckDB tools of today can open.
STORAGE = "v1.5.0"
# One thread: a short write has nothing to share out, and each thread keeps buffers of its own. Nothing is fetched from
# the internet on our behalf.
CONFIG: Mapping[str, str] = {
    "threads": "1",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_file_cache": "false",
}
# No row's place in a table means anything, and keeping it costs a twentieth of the time.
WRITING: Mapping[str, str] = {**CONFIG, "preserve_insertion_order": "false"}
_MAGIC = b"DUCK"
_HEADERS = 3 * 4096  # a main header and two database headers


def wal(path: Path) -> Path:
    """The write-ahead log beside a database file."""
    return path.with_name(path.name + ".wal")


def is_database(path: Path) -> bool:
    """Whether the file begins as a DuckDB database does and is long enough to be one.

    Only for a file that no connection of this process has open: closing it again would drop the connection's lock.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        return head[8:12] == _MAGIC and file.seek(0, os.SEEK_END) >= _HEADERS


def create(path: Path) -> None:
    """Make an empty history. The caller holds the lock file.

    The first writes of a new DuckDB file are not crash-safe, so that it is made under another name and moved into its
    place when all of it is on the disk.

    Raises:
        duckdb.Error, OSError: The disk does not take it; nothing is left in the file's place.
    """
    for left in path.parent.glob(f".{path.name}.new-*"):
        left.unlink(missing_ok=True)
    if wal(path).exists():  # a log without its database would be played into the new one
        _move_aside(wal(path), "orphan")
    temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        connection = duckdb.connect(str(temporary), config={**CONFIG, "storage_compatibility_version": STORAGE})
        try:
            schema.migrate(connection, str(path))
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        temporary.chmod(0o600)
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        wal(temporary).unlink(missing_ok=True)
    reopen_all_runs()


def set_aside(path: Path, why: str) -> Path:
    """Move a damaged file (and its log) out of the way, never over anything. The caller holds the lock file.

    Returns:
        Where it is now.
    """
    target = _move_aside(path, "damaged")
    if wal(path).exists():
        wal(path).rename(wal(target))
    _sync(path.parent)
    log.warning(
        "the history %s cannot be used (%s); it is now %s, and a new one is made from the journals", path, why, target
    )
    return target


def reopen_all_runs() -> None:
    """Mark every run directory as not in the history, so that a new history is filled from the journals."""
    runs, markers = paths.runs_folder(), paths.open_runs_folder()
    if not runs.is_dir():
        return
    markers.mkdir(exist_ok=True)
    for root in runs.iterdir():
        if (root / "run.json").is_file():
            (markers / root.name).touch()


def _move_aside(path: Path, word: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.{word}-{stamp}")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.{word}-{stamp}-{count}")
    path.rename(target)
    return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same(path: Path, history: Path | None = None) -> bool:
    """Whether a path is the history file itself, under whatever name."""
    other = history or paths.history_file()
    return path.exists() and other.exists() and path.samefile(other)
