"""Opening the history for a moment: to write under the lock file, or to read.

One process at a time may have the file open for writing, and then nobody else may read it; so everybody opens it for
milliseconds and comes back when it is taken. Within a process, one connection at a time: a second open and close of the
same file would drop the first one's lock (POSIX).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorawatch import paths
from lorawatch.errors import HistoryBusy, HistoryDamaged, HistoryError, HistoryTooNew, LorawatchError
from lorawatch.storage import files, schema
from lorawatch.storage.engine import Connection, Error, duckdb

_ONE_AT_A_TIME = threading.Lock()
_RETRY_S = 0.01


@contextlib.contextmanager
def writing(path: Path | None = None, *, deadline_s: float = 2.0) -> Iterator[Connection]:
    """The history, open for writing, made or migrated first where need be.

    Args:
        path: The history file; default: the home's.
        deadline_s: How long to wait for others to leave it.

    Raises:
        HistoryBusy: Others held it all that time.
        HistoryTooNew: A newer lorawatch, or a newer DuckDB, has written it.
        HistoryError: It cannot be written: no permission, no space.
    """
    path = path or paths.history_file()
    deadline = time.monotonic() + deadline_s
    with _errors_told(path), _alone(deadline, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(path, deadline):
            connection = _open_or_make(path, deadline)
            try:
                schema.migrate(connection, str(path))
                yield connection
            finally:
                connection.close()


@contextlib.contextmanager
def reading(
    path: Path | None = None, *, deadline_s: float = 2.0, config: Mapping[str, str] | None = None
) -> Iterator[Connection]:
    """The history, open for reading; one that an older lorawatch has written is brought up to date first.

    Raises:
        HistoryBusy: A writer held it all that time.
        HistoryError: There is none yet, or it cannot be read.
    """
    path = path or paths.history_file()
    deadline = time.monotonic() + deadline_s
    with _errors_told(path), _alone(deadline, path):
        if not path.exists():
            raise HistoryError(f"there is no history in {path.parent} yet", hint="record a run: lorawatch --record")
        options = {**files.CONFIG, **(config or {})}
        connection = _open(path, deadline, read_only=True, config=options)
        try:
            if schema.check(connection, str(path)) < schema.latest():
                connection.close()
                with contextlib.suppress(LorawatchError, OSError, Error):  # read-only, or held: what is there is read
                    _bring_up_to_date(path, deadline)
                connection = _open(path, deadline, read_only=True, config=options)
            yield connection
        finally:
            connection.close()


def _bring_up_to_date(path: Path, deadline: float) -> None:
    """What an older lorawatch has written lacks columns that questions name: it is migrated before it is read."""
    with _lock_file(path, deadline):
        connection = _open_or_make(path, deadline)
        try:
            schema.migrate(connection, str(path))
        finally:
            connection.close()


def reading_with(
    connection: Connection | None, *, deadline_s: float = 2.0
) -> contextlib.AbstractContextManager[Connection]:
    """A connection that is open already and stays so, or the history `reading`: an open takes 20 ms of a large file."""
    return contextlib.nullcontext(connection) if connection is not None else reading(deadline_s=deadline_s)


@contextlib.contextmanager
def held(path: Path, deadline: float) -> Iterator[None]:
    """Nobody of lorawatch has the history open meanwhile, in this process or another.

    Raises:
        HistoryBusy: Others held it until the deadline.
    """
    with _alone(deadline, path), _lock_file(path, deadline):
        yield


def checkpoint(path: Path, deadline: float) -> None:
    """Move what the log holds into the file itself; the caller has it `held`.

    Raises:
        HistoryBusy, HistoryError: It cannot be opened for writing.
    """
    with _errors_told(path):
        connection = _open(path, deadline, read_only=False, config=files.WRITING)
        try:
            connection.execute("CHECKPOINT")
        finally:
            connection.close()


@contextlib.contextmanager
def _alone(deadline: float, path: Path) -> Iterator[None]:
    if not _ONE_AT_A_TIME.acquire(timeout=max(deadline - time.monotonic(), 0)):
        raise HistoryBusy(f"another part of this process uses the history {path}", hint="try again")
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


@contextlib.contextmanager
def _lock_file(path: Path, deadline: float) -> Iterator[None]:
    """Writers of lorawatch queue here, so that they never meet at DuckDB's own lock."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise HistoryBusy(
                        f"another lorawatch is writing to the history {path}", hint="what is new waits in the journals"
                    ) from None
                time.sleep(_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _open_or_make(path: Path, deadline: float) -> Connection:
    if not path.exists():
        files.create(path)
    try:
        return _open(path, deadline, read_only=False, config=files.WRITING)
    except HistoryDamaged as error:
        files.set_aside(path, error.message)
        files.create(path)
        return _open(path, deadline, read_only=False, config=files.WRITING)


def _open(path: Path, deadline: float, *, read_only: bool, config: Mapping[str, str]) -> Connection:
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=dict(config))
        except Error as error:
            told = explain(error, path)
            if not isinstance(told, HistoryBusy) or time.monotonic() >= deadline:
                raise told from None
        time.sleep(_RETRY_S)


@contextlib.contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    """DuckDB's and the system's errors in the house's words."""
    try:
        yield
    except LorawatchError:
        raise
    except Error as error:
        raise explain(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path) from error
        raise HistoryError(
            f"the history {path} cannot be used: {error.strerror or error}", hint="LORAWATCH_HOME names its folder"
        ) from error


def explain(error: Exception, path: Path) -> HistoryError:
    """What a DuckDB error means for the history, from its text: DuckDB has one class for most of them.

    Only a positive sign of damage (no DuckDB header, a broken checksum, a cut file) makes it HistoryDamaged.
    """
    text = str(error)
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
        return HistoryDamaged(f"the history {path} is not a DuckDB database")
    if "Corrupt database file" in text or "Could not read enough bytes" in text:
        return HistoryDamaged(f"the history {path} is damaged: {text.splitlines()[0]}")
    return HistoryError(f"the history {path}: {text.splitlines()[0]}")


def _begins_right(path: Path) -> bool:
    try:
        return files.is_database(path)
    except OSError:
        return True  # unknown: nothing is taken for damaged on a guess


def _full(path: Path) -> HistoryError:
    return HistoryError(
        f"no space left for the history {path}", hint="free some space; what is new waits in the journals"
    )
