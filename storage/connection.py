"""Opening the history for a moment: to write under the lock file, or to read.

One process at a time may have the file open for writing, and then no other may read it; so each opens it for
milliseconds and tries again when it is in use. Within a process, one connection at a time: a second open and close of the
same file would drop the first one's lock (POSIX).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from lorawatch.errors import HistoryBusy, HistoryDamaged, HistoryError, LorawatchError
from lorawatch.storage import files, schema
from lorawatch.storage.engine import Connection, Error, duckdb
from lorawatch.storage.explain import check_kind, explain, explained
from lorawatch.system import home

log = logging.getLogger("lorawatch.storage")
_ONE_AT_A_TIME = threading.Lock()
_RETRY_S = 0.01
_T = TypeVar("_T")


@contextlib.contextmanager
def writing(path: Path | None = None, *, deadline_s: float = 2.0, whole: bool = False) -> Iterator[Connection]:
    """The history, open for writing, made or migrated first where need be.

    One that cannot be opened because it is damaged is set aside and a new one made, which `repair` fills.

    Args:
        path: The history file; default: the home's.
        deadline_s: How long to wait for others to leave it.
        whole: Only one that has everything: a change to what is still to come back would be lost.

    Raises:
        HistoryBusy: Others held it all that time.
        HistoryTooNew: A newer lorawatch, or a newer DuckDB, has written it.
        HistoryDamaged: Damage has shown while it was open (`once_more` then sets it aside), or it is not whole.
        HistoryError: It cannot be written: no permission, no space.
    """
    path = path or home.history_file()
    deadline = time.monotonic() + deadline_s
    with explained(path), _alone(deadline, path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _lock_file(path, deadline), files.private(path):
            connection = _open_or_make(path, deadline)
            try:
                if whole:
                    _check_whole(path)
                schema.migrate(connection, str(path))
                yield connection
            finally:
                connection.close()


@contextlib.contextmanager
def reading(
    path: Path | None = None,
    *,
    deadline_s: float = 2.0,
    config: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Iterator[Connection]:
    """The history, open for reading; one that an older lorawatch has written is brought up to date first.

    Args:
        partial: Also where it does not have everything again after it was damaged.

    Raises:
        HistoryBusy: A writer held it all that time.
        HistoryDamaged: It is damaged or gone, or was and is not whole again.
        HistoryError: There is none yet, or it cannot be read.
    """
    path = path or home.history_file()
    deadline = time.monotonic() + deadline_s
    with explained(path), _alone(deadline, path):
        if files.absent(path):
            raise HistoryError(f"there is no history in {path.parent} yet", hint="record a run: lorawatch --record")
        if files.gone(path):
            raise HistoryDamaged(f"the history {path} is gone; it is made again from the journals of the runs")
        if not partial:
            _check_whole(path)
        options = {**files.READING, **(config or {})}
        connection = _open(path, deadline, read_only=True, config=options)
        try:
            if not schema.is_current(connection, str(path)):
                connection.close()
                with contextlib.suppress(LorawatchError, OSError, Error):  # read-only, or held: what is there is read
                    _bring_up_to_date(path, deadline)
                connection = _open(path, deadline, read_only=True, config=options)
            yield connection
        finally:
            connection.close()


def _check_whole(path: Path) -> None:
    asides = files.noted(path)
    if asides:
        raise HistoryDamaged(
            f"the history {path} was damaged ({asides[0].why}) and is not whole again yet",
            hint="lorawatch doctor --rebuild-history goes on with it",
        )


def _bring_up_to_date(path: Path, deadline: float) -> None:
    """What an older lorawatch has written lacks columns that questions name: it is migrated before it is read."""
    with _lock_file(path, deadline), files.private(path):
        connection = _open(path, deadline, read_only=False, config=files.WRITING)
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
    with explained(path), _alone(deadline, path), _lock_file(path, deadline):
        yield


def once_more(path: Path | None, work: Callable[[], _T], *, deadline_s: float = 2.0) -> _T:
    """Do work that writes to the history; where that shows damage, set the history aside and do it once more.

    Raises:
        HistoryDamaged: DuckDB failed inside, and whether that is damage is not certain.
        HistoryBusy, HistoryError: As `writing`.
    """
    path = path or home.history_file()
    try:
        return work()
    except HistoryDamaged as error:
        if not error.certain:
            raise
        with held(path, time.monotonic() + deadline_s):
            if files.identity(path) == error.file:  # otherwise another process was faster
                _set_aside(path, error)
        return work()


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
    name = files.lock(path)
    descriptor = None
    try:
        while True:
            try:
                if descriptor is None:
                    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, IsADirectoryError) as error:
                if time.monotonic() >= deadline:
                    raise _locked_out(path, name, error) from None
                time.sleep(_RETRY_S)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked_out(path: Path, name: Path, error: OSError) -> HistoryBusy:
    if isinstance(error, IsADirectoryError):
        return HistoryBusy(
            f"a folder stands in the place of the lock file {name}",
            hint="remove the folder; what is new waits in the journals until then",
        )
    return HistoryBusy(f"another lorawatch is writing to the history {path}", hint="what is new waits in the journals")


def _open_or_make(path: Path, deadline: float) -> Connection:
    try:
        check_kind(path)
        if not path.exists():
            files.create(path)
        return _open(path, deadline, read_only=False, config=files.WRITING)
    except HistoryDamaged as error:
        if not error.certain:
            raise
        _set_aside(path, error)
        files.create(path)
        return _open(path, deadline, read_only=False, config=files.WRITING)


def _set_aside(path: Path, error: HistoryDamaged) -> None:
    target = files.set_aside(path, error.message)
    log.warning("%s; it is now %s, and a new one is made from the journals", error.message, target)


def _open(path: Path, deadline: float, *, read_only: bool, config: Mapping[str, str]) -> Connection:
    check_kind(path)
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=dict(config))
        except Error as error:
            failure = explain(error, path)
            if not isinstance(failure, HistoryBusy) or time.monotonic() >= deadline:
                raise failure from None
        time.sleep(_RETRY_S)
