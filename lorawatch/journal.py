"""Append-only JSON-lines files, the first place where anything is written.

A writer never blocks its caller and never raises into it; a reader takes complete lines only, so that a tail torn by a
crash is left alone until it is whole, or stepped over when the next writer has closed it.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from lorawatch.records import AnyLine, LinesLost, Record

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
        self._rank = rank
        self._keep = keep
        self._waiting: deque[bytes] = deque()
        self._pending = b""  # the rest of a line that the disk took only in part
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._lost = 0
        self.error: str | None = None
        """Why the last flush failed, or None."""

    @property
    def waiting(self) -> int:
        """Lines not yet on disk."""
        return len(self._waiting) + bool(self._pending)

    @property
    def lost(self) -> int:
        """Lines dropped since the disk last took a line."""
        return self._lost

    def append(self, record: Record) -> None:
        """Queue one line."""
        if len(self._waiting) >= self._keep:
            self._lost += 1
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

    def _flush(self) -> bool:
        if not self._waiting and not self._pending and not self._lost:
            return True
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _ends_torn(self.path):
                self._pending = b"\n" + self._pending
        if self._lost and not self._waiting and not self._pending:
            self._queue_lost()
        while self._pending or self._waiting:
            if not self._pending:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), 2000))]
                self._pending = b"".join(batch)
            written = os.write(self._descriptor, self._pending)
            self._pending = self._pending[written:]
            if not self._pending and not self._waiting and self._lost:
                self._queue_lost()
        self.error = None
        return True

    def _queue_lost(self) -> None:
        lost, self._lost = self._lost, 0
        self._waiting.append(_encoder.encode(LinesLost(at=time.time(), lines=lost, rank=self._rank)) + b"\n")

    def close(self) -> None:
        """Flush and close; what the disk still refuses is gone with the process."""
        self.flush()
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


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
    """A pipe in the file's place is no reason to wait for somebody who writes to it."""
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
