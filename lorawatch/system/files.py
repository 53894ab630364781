"""Small files that are whole or absent at any moment, read without trusting others who may write to their folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from lorawatch.system.permissions import make_private

LARGEST = 16 << 20
"""Bytes; a small file of ours is a thousandth of it."""
_T = TypeVar("_T")


def beside(path: Path, word: str = "") -> Path:
    """A new name in the same folder, hidden, that no other process on any host has chosen."""
    return path.with_name(f".{path.name}.{word}{os.getpid()}-{secrets.token_hex(4)}")


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace a file as a whole, mode 0600: a reader sees the old content or the new, never a part.

    Args:
        durable: Also wait until the disk has it.

    Raises:
        OSError: The folder is not there, or cannot be written.
    """
    temporary = beside(path)
    # O_EXCL and O_NOFOLLOW: a link planted under this name is not followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except IsADirectoryError:  # a folder in its place would refuse it for good
            path.rename(beside(path, "folder-"))
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_small(path: Path, limit: int = LARGEST) -> bytes:
    """A small regular file's content. A link, a pipe or a device in its place is refused, so that reading never blocks.

    Raises:
        OSError: It is absent, no regular file, larger than the limit, or cannot be read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
        return file.read(limit)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without following a link and without waiting for a pipe.

    Raises:
        OSError: It is absent, no regular file (IsADirectoryError for a folder), or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, "not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """A small JSON file as a struct; None where it is absent or not (yet) valid."""
    try:
        return msgspec.json.decode(read_small(path), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


class Reserve:
    """Room on the disk for one small file, taken early, so that it can be written once the disk is full.

    Args:
        path: The file.
        size: Bytes of room.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._reserved = path.with_name(f".{path.name}.reserved")
        with contextlib.suppress(OSError):
            make_private(path.parent)
            self._reserved.unlink(missing_ok=True)
            write_atomically(self._reserved, b" " * size)

    def write(self, data: bytes) -> None:
        """Replace the file, in the room that was taken where no other is left.

        Raises:
            OSError: It cannot be written even so.
        """
        try:
            write_atomically(self._path, data)
        except OSError:
            if len(data) > self._size:
                raise
            descriptor = os.open(self._reserved, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "wb") as file:  # no O_TRUNC: the blocks are what was reserved
                file.write(data)
                file.truncate()
            self._reserved.replace(self._path)

    def release(self) -> None:
        """Give the room back."""
        with contextlib.suppress(OSError):
            self._reserved.unlink(missing_ok=True)
