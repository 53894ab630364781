"""Failures of the history's file as errors that say what to do. DuckDB has one class for most of them, and a message."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from lorawatch.errors import HistoryBusy, HistoryDamaged, HistoryError, HistoryTooNew, LorawatchError
from lorawatch.storage import files
from lorawatch.storage.engine import Error, duckdb

# DuckDB's messages for a file that was cut, or whose bytes have changed; each was observed on such a file.
_DAMAGE = re.compile(
    r"Corrupt(ed)? (database|WAL|\w+ segment|block)|Failure while replaying WAL|Could not read enough bytes"
    r"|file is corrupt|checksum .{0,80} does not match|Failed to deserialize|serialization error",
    re.IGNORECASE,
)
_INSIDE = (duckdb.InternalException, duckdb.FatalException)
_ABOUT_THE_FILE = (duckdb.IOException, duckdb.SerializationException, duckdb.TransactionException, *_INSIDE)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """DuckDB's and the system's errors about the history at `path`, as `HistoryError`s."""
    try:
        yield
    except LorawatchError:
        raise
    except Error as error:
        raise explain(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path) from error
        about = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise HistoryError(
            f"the history {path} cannot be used: {error.strerror or error}{about}",
            hint="LORAWATCH_HOME names its folder",
        ) from error


def explain(error: Exception, path: Path) -> HistoryError:
    """The `HistoryError` for a DuckDB error.

    Only a positive sign of damage (no DuckDB header, a broken checksum, a cut file) makes it `HistoryDamaged`. An
    internal error of DuckDB comes from damage or from a defect of DuckDB: it is `HistoryDamaged` too, but not a certain one.
    """
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if "Could not set lock on file" in text or "lock is held" in text:
        holder = re.search(r"held in (\S+) \(PID (\d+)\)", text)
        who = f"{Path(holder[1]).name} (process {holder[2]})" if holder else "another process"
        return HistoryBusy(
            f"{who} holds the history {path}", hint="what is new waits in the journals; close that program"
        )
    if re.search(r"version number|newer version|created with a newer|not.{0,20}forward compatib", text):
        return HistoryTooNew(
            f"the history {path} was written by a newer DuckDB",
            hint="upgrade lorawatch, or set LORAWATCH_HOME elsewhere",
        )
    if "No space left" in text or "Disk quota" in text:
        return _full(path)
    if "ermission denied" in text or "Read-only file system" in text:
        return HistoryError(f"the history {path} may not be opened", hint="check who owns the file and its folder")
    if "not a valid DuckDB database" in text and not _begins_right(path):
        return damaged(path, "it is not a DuckDB database")
    if _DAMAGE.search(first):
        return damaged(path, first)
    if isinstance(error, _INSIDE):
        return damaged(path, first, certain=False)
    return HistoryError(f"the history {path}: {first}", hint="lorawatch doctor reads all of it")


def about_the_file(error: Exception) -> bool:
    """Whether the file may be the cause; all other errors can have a query's own text (`SELECT error('…')`)."""
    return type(error) is Error or isinstance(error, _ABOUT_THE_FILE)


def check_kind(path: Path) -> None:
    """Check what is at the history's path before anything opens it: opening a pipe would wait.

    Raises:
        HistoryDamaged: It is not a file.
        HistoryError: It is a link to nothing, such as to a disk that is not mounted.
    """
    if path.is_symlink() and not path.exists():
        raise HistoryError(
            f"the history {path} is a link to {path.readlink()}, where nothing is",
            hint="mount its disk, or remove the link",
        )
    if path.exists() and not path.is_file():
        raise damaged(path, "a folder stands in its place" if path.is_dir() else "what stands in its place is no file")


def damaged(path: Path, why: str, *, certain: bool = True) -> HistoryDamaged:
    """The error of a history whose content cannot be read."""
    return HistoryDamaged(
        f"the history {path} is damaged: {why}",
        hint="lorawatch doctor --rebuild-history makes a new one from the journals, and keeps this one",
        certain=certain,
        file=files.identity(path),
    )


def _begins_right(path: Path) -> bool:
    try:
        return files.is_database(path)
    except OSError:
        return True  # unknown: a file is not called damaged on a guess


def _full(path: Path) -> HistoryError:
    return HistoryError(
        f"no space left for the history {path}", hint="free some space; what is new waits in the journals"
    )
