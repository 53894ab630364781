"""Append-only JSON-lines files, the first place where anything is written.

A writer never blocks its caller and never raises into it; a reader takes complete lines only, so that a tail torn by a
crash is left alone until it is whole, or stepped over when the next writer has closed it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from lorawatch.run.records import AnyLine, LinesLost, Record, Step
from lorawatch.system.files import beside, write_atomically

_RESERVED_BYTES = 4096
_RETRY_S = 0.2
_LOOK_EVERY_S = 1.0
# How much of what was read last is looked at again: more than one line, so that two lines alike do not deceive.
_MARKED = 256
_encoder = msgspec.json.Encoder()
line_decoder: msgspec.json.Decoder[AnyLine] = msgspec.json.Decoder(AnyLine)


class JournalWriter:
    """Appends records to one journal file; what the disk refuses waits in memory.

    Args:
        path: The journal file; its folder must exist.
        rank: The rank that writes, for the report of lost lines; None for the recorder.
        keep: How many lines may wait while the disk refuses them. Past that the newest are dropped and counted, and the
            count is journaled as a `lines_lost` line once the disk takes lines again.

    `append` is cheap (encode and queue); `flush` writes and never raises; one thread calls it. The queue itself is safe
    for any thread.
    """

    def __init__(self, path: Path, *, rank: int | None = None, keep: int = 200_000) -> None:
        self.path = path
        self._reserved = path.with_name(f".{path.name}.reserved")
        self._rank = rank
        self._keep = keep
        self._waiting: deque[bytes] = deque()
        self._batch = b""  # what the disk takes at the moment, and how much of it it has taken
        self._written = 0
        self._descriptor: int | None = None
        self._looked_at = time.monotonic()
        self._lock = threading.Lock()
        self._lost = _Lost()
        self.error: str | None = None
        """Why the last flush failed, or None."""

    @property
    def waiting(self) -> int:
        """Lines not yet on disk, one that is there in part included."""
        return len(self._waiting) + self._rest().count(b"\n")

    @property
    def lost(self) -> int:
        """Lines dropped since the disk last took a line."""
        return self._lost.lines

    def append(self, record: Record) -> None:
        """Queue one line."""
        if len(self._waiting) >= self._keep:
            self._lost.add(record)
            return
        self._waiting.append(_encoder.encode(record) + b"\n")

    def flush(self) -> bool:
        """Write what waits. Returns whether everything is on its way to the disk."""
        with self._lock:
            try:
                return self._flush()
            except OSError as error:
                self.error = f"{error.strerror or error}: {self.path}"
                return False

    def reserve(self) -> None:
        """Take room on the disk for one last line, which says what else could not be written.

        Raises:
            OSError: There is none.
        """
        write_atomically(self._reserved, b" " * _RESERVED_BYTES)

    def close(self, wait_s: float = 0.0) -> int:
        """Flush and close; what the disk refuses until the end is gone with the process, and the last line says so.

        Args:
            wait_s: How long to wait for the disk.

        Returns:
            How many lines the disk did not take.
        """
        deadline = time.monotonic() + wait_s
        while not self.flush() and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
        with self._lock, contextlib.suppress(OSError):
            self._reserved.unlink(missing_ok=True)
        with self._lock:
            torn = bool(self._rest())
            for line in (*self._rest(whole=True).splitlines(), *self._waiting):
                self._lost.add(_decoded(line))
            unwritten = self._lost.lines
            if unwritten and self._descriptor is not None:
                with contextlib.suppress(OSError):
                    os.write(self._descriptor, (b"\n" if torn else b"") + self._lost_line())
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._waiting.clear()
            self._batch, self._written, self._lost = b"", 0, _Lost()
        return unwritten

    def _flush(self) -> bool:
        if not self._waiting and not self._rest() and not self._lost.lines:
            return True
        if self._descriptor is not None and time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._look_at_file(self._descriptor)
        if self._descriptor is None:
            if self.path.is_symlink():  # a journal is none: what it names is not ours to write to
                self.path.unlink()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
            if _ends_torn(self.path):
                self._batch, self._written = b"\n" + self._rest(), 0
        while True:
            if self._written == len(self._batch):
                if self._lost.lines and not self._waiting:
                    self._waiting.append(self._lost_line())
                    self._lost = _Lost()
                lines = [self._waiting.popleft() for _ in range(min(len(self._waiting), 2000))]
                self._batch, self._written = b"".join(lines), 0
                if not lines:
                    break
            self._written += os.write(self._descriptor, memoryview(self._batch)[self._written :])
        self.error = None
        return True

    def _look_at_file(self, descriptor: int) -> None:
        """Put a file that was deleted back under its name: as long as it is open here its lines are still there."""
        self._looked_at = time.monotonic()
        if os.fstat(descriptor).st_nlink == 0 and (self.path.is_symlink() or not self.path.exists()):
            copy = beside(self.path)
            with contextlib.suppress(OSError):  # no space, or its folder is gone too: asked again in a second
                shutil.copyfile(f"/proc/self/fd/{descriptor}", copy)
                copy.chmod(0o600)
                self._descriptor = os.open(copy, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.close(descriptor)
                copy.rename(self.path)
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)

    def _rest(self, *, whole: bool = False) -> bytes:
        """What of the last batch is not on the disk.

        Args:
            whole: From the beginning of a line of which the disk took a part.
        """
        begin = self._batch.rfind(b"\n", 0, self._written) + 1 if whole else self._written
        return self._batch[begin:] if self._written < len(self._batch) else b""

    def _lost_line(self) -> bytes:
        lost = self._lost
        line = LinesLost(at=time.time(), lines=lost.lines, rank=self._rank, steps=lost.steps, last_step=lost.last_step)
        return _encoder.encode(line) + b"\n"


@dataclass
class _Lost:
    """Lines that were not kept."""

    lines: int = 0
    steps: int = 0
    last_step: int | None = None

    def add(self, record: Record | None) -> None:
        self.lines += 1
        if isinstance(record, Step):
            self.steps, self.last_step = self.steps + 1, max(self.last_step or 0, record.step)


def _decoded(line: bytes) -> Record | None:
    try:
        return line_decoder.decode(line)
    except msgspec.MsgspecError:
        return None


def _ends_torn(path: Path) -> bool:
    """Whether the file's last line lacks its newline: a writer died in the middle of it."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class JournalTail:
    """Follows one journal file from a byte offset, complete lines only.

    Args:
        offset: Bytes read before; just behind a newline.
        mark: What `mark` was at that offset; None where it is not known.

    Attributes:
        offset: Bytes read so far; always just behind a newline.
        mark: A checksum of the last bytes read: what stands before the offset of a file that was only appended to. None
            where nothing was read yet, or where it is not known.
        broken: Lines that were no valid record: torn by a crash and closed by the next writer, or out of bounds.
        error: Why the file could not be read the last time; None where it could, and where there is none.
        cut: How often the file no longer had, before the offset, what was read there: it was cut or replaced. Lines may
            be missed: it is read on from the beginning of the line in which the offset lies, or the new end.
    """

    def __init__(self, path: Path, offset: int = 0, mark: int | None = None) -> None:
        self.path = path
        self.offset = offset
        self.mark = mark
        self.broken = 0
        self.cut = 0
        self.error: str | None = None

    def read(self, limit: int = 4 << 20) -> bytes:
        """The next complete lines, at most about `limit` bytes; empty when there is nothing new."""
        self.error = None
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                before = self._place(file)
                data = file.read(limit)
                end = data.rfind(b"\n") + 1
                while not end and len(data) >= limit:  # one line longer than the limit
                    more = file.read(limit)
                    if not more:
                        break
                    data += more
                    end = data.rfind(b"\n") + 1
        except FileNotFoundError:
            return b""
        except OSError as error:  # a folder in its place, no permission
            self.error = error.strerror or str(error)
            return b""
        if end or self.mark is None:
            self.offset += end
            self.mark = _mark(before + data[max(end - _MARKED, 0) : end])
        return data[:end]

    def _place(self, file: BinaryIO) -> bytes:
        """Go to where reading goes on. Returns the last bytes before it."""
        size = file.seek(0, os.SEEK_END)
        if self.offset <= size:
            before = _before(file, self.offset)
            torn = bool(before) and not before.endswith(b"\n")
            if not torn and self.mark in (None, _mark(before)):
                return before
        self.cut += 1
        self.mark = None
        self.offset = _line_begin(file, min(self.offset, size))
        return _before(file, self.offset)

    def records(self, limit: int = 4 << 20) -> Iterator[AnyLine]:
        """The next complete lines, decoded; broken ones are counted and stepped over."""
        for line in self.read(limit).splitlines():
            try:
                yield line_decoder.decode(line)
            except msgspec.MsgspecError:
                self.broken += bool(line.strip())


def _open_at_once(path: str, flags: int) -> int:
    """A pipe in the file's place is no reason to wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _before(file: BinaryIO, offset: int, most: int = _MARKED) -> bytes:
    """The last bytes before an offset, at which the file then is."""
    file.seek(max(offset - most, 0))
    return file.read(min(offset, most))


def _line_begin(file: BinaryIO, offset: int) -> int:
    """Where the line begins that an offset lies in."""
    while offset:
        piece = _before(file, offset, 1 << 16)
        newline = piece.rfind(b"\n") + 1
        if newline:
            return offset - len(piece) + newline
        offset -= len(piece)
    return 0


def _mark(tail: bytes) -> int:
    return zlib.crc32(tail[-_MARKED:])
