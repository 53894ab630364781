"""The history as a file: created atomically, and set aside where it is damaged."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from lorawatch.storage import schema
from lorawatch.storage.engine import duckdb
from lorawatch.system import home
from lorawatch.system.files import write_atomically

# A format that current DuckDB tools can open.
STORAGE = "v1.5.0"
# One thread: a short write has no work to divide, and each thread keeps buffers of its own. No downloads from the
# internet.
CONFIG: Mapping[str, str] = {
    "threads": "1",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_file_cache": "false",
}
# A reader writes nothing beside the file when memory runs out.
READING: Mapping[str, str] = {**CONFIG, "temp_directory": ""}
# The order of rows in a table has no meaning, and keeping it costs a twentieth of the time.
WRITING: Mapping[str, str] = {**CONFIG, "preserve_insertion_order": "false"}
_MAGIC = b"DUCK"
_HEADERS = 3 * 4096  # a main header and two database headers


def wal(path: Path) -> Path:
    """The write-ahead log beside a database file."""
    return path.with_name(path.name + ".wal")


def lock(path: Path) -> Path:
    """The lock file of a history's writers."""
    return path.with_name(path.name + ".lock")


def rebuilding(path: Path) -> Path:
    """The note beside a history that was damaged and is not whole again yet."""
    return path.with_name(path.name + ".rebuilding")


def absent(path: Path | None = None) -> bool:
    """Whether there is no history yet; one that was damaged and set aside, or is gone, is not absent."""
    path = path or home.history_file()
    return not os.path.lexists(path) and not rebuilding(path).exists() and not gone(path)


def gone(path: Path) -> bool:
    """Whether the home's history is gone: a run without a marker was completely in it."""
    if path != home.history_file() or os.path.lexists(path) or rebuilding(path).exists():
        return False
    marked = home.open_runs_folder()
    return any(not (marked / info.parent.name).exists() for info in home.runs_folder().glob("[!.]*/run.json"))


def identity(path: Path) -> tuple[int, int] | None:
    """Identifies the file independent of its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_database(path: Path) -> bool:
    """Whether the file begins as a DuckDB database does and is long enough to be one.

    Only for a file that no connection of this process has open: closing it again would drop the connection's lock.
    """
    with open(path, "rb") as file:
        head = file.read(16)
        return head[8:12] == _MAGIC and file.seek(0, os.SEEK_END) >= _HEADERS


@contextlib.contextmanager
def private(path: Path) -> Iterator[None]:
    """Files that DuckDB makes beside the history (its log, temporary files) get no wider permissions than the history.

    A process has one mask for all its threads: it is only made stricter here, and by one connection at a time.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        mode = 0o600
    before = os.umask(0o077)
    os.umask(before | (0o077 & ~mode))
    try:
        _like(wal(path), mode)  # one of an older lorawatch
        yield
        _like(wal(path), mode)  # where the file's group shares it, the log is the group's too
    finally:
        os.umask(before)


def _like(path: Path, mode: int) -> None:
    with contextlib.suppress(OSError):  # there is none, or it is another user's
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def create(path: Path) -> None:
    """Make an empty history. The caller holds the lock file.

    The first writes of a new DuckDB file are not crash-safe, so that it is made under another name and moved into its
    place when all of it is on the disk.

    Raises:
        duckdb.Error, OSError: It cannot be written; nothing is left in its place.
    """
    for left in path.parent.glob(f".{path.name}.new-*"):
        left.unlink(missing_ok=True)
    if wal(path).exists():  # a log without its database would be replayed into the new one
        wal(path).rename(beside(wal(path), "orphan"))
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
    if path == home.history_file():
        reopen_all_runs()


def set_aside(path: Path, why: str, word: str = "damaged") -> Path:
    """Move a history (and its log) to an unused name, and note that a new one lacks its content.

    The caller holds the lock file.

    Returns:
        Where it is now.
    """
    target = beside(path, word)
    note(path, [*noted(path), Aside(target.name, why)])  # before the move, so that the note survives a crash in between
    path.rename(target)
    if wal(path).exists():
        wal(path).rename(wal(target))
    _sync(path.parent)
    return target


class Aside(msgspec.Struct, frozen=True):
    """A history that was set aside; the new one may lack its content."""

    name: str
    """The file's name in the history's folder."""
    why: str


def noted(path: Path) -> list[Aside]:
    """The histories that were set aside and not read yet; empty where the history is whole."""
    try:
        return msgspec.json.decode(rebuilding(path).read_bytes(), type=list[Aside])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError):  # incomplete: only that something was set aside is known
        return [Aside(p.name, "it was set aside") for p in all_set_aside(path)]


def note(path: Path, asides: Sequence[Aside]) -> None:
    """Write the note of what was set aside; an empty list removes it: the history is whole again."""
    if asides:
        write_atomically(rebuilding(path), msgspec.json.encode(asides), durable=True)
    else:
        rebuilding(path).unlink(missing_ok=True)


def reopen_all_runs() -> None:
    """Mark every run directory as not in the history, so that a new history is filled from the journals."""
    runs, markers = home.runs_folder(), home.open_runs_folder()
    if not runs.is_dir():
        return
    markers.mkdir(exist_ok=True)
    for root in runs.iterdir():
        if (root / "run.json").is_file():
            (markers / root.name).touch()


def beside(path: Path, word: str) -> Path:
    """An unused name: the file's, a word, and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.{word}-{stamp}")
    count = 1
    while os.path.lexists(target) or os.path.lexists(wal(target)):
        count += 1
        target = path.with_name(f"{path.name}.{word}-{stamp}-{count}")
    return target


def all_set_aside(path: Path) -> list[Path]:
    """Histories beside this one that were damaged or replaced, without their logs."""
    names = (f"{path.name}.{word}-*" for word in ("damaged", "replaced"))
    return sorted(p for name in names for p in path.parent.glob(name) if not p.name.endswith(".wal"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same(path: Path, history: Path | None = None) -> bool:
    """Whether a path is the history file itself, under whatever name."""
    other = history or home.history_file()
    return path.exists() and other.exists() and path.samefile(other)
