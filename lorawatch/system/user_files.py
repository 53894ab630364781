"""Files that a user names, read within bounds: neither a device without an end nor a pipe without a writer keeps a command."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

_PIPE_WAIT_S = 10.0


def expanded(name: str) -> Path:
    """A path as the user writes it: `~` is the user's own folder, where the system knows it."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  Path.expanduser raises where there is no such user


def read_bounded(path: Path, largest: int) -> bytes:
    """A file's content, or a pipe's (`<(…)`, /dev/stdin) up to its end.

    Args:
        largest: Bytes that it may have.

    Raises:
        OSError: It cannot be read, is no file, or is larger; `strerror` says what is wrong.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            data = _drained(descriptor, largest)
        elif stat.S_ISREG(status.st_mode):
            if status.st_size > largest:
                raise _too_large(largest)
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(largest + 1)
        else:
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no file")
    finally:
        os.close(descriptor)
    if len(data) > largest:
        raise _too_large(largest)
    return data


def _drained(pipe: int, largest: int) -> bytes:
    """What a pipe's writer gives until it closes it."""
    data = b""
    deadline = time.monotonic() + _PIPE_WAIT_S
    while len(data) <= largest:
        if not select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"nothing came through the pipe for {_PIPE_WAIT_S:.0f} s")
        try:
            piece = os.read(pipe, largest + 1 - len(data))
        except BlockingIOError:  # another reader was faster
            continue
        if not piece:
            break
        data += piece
        deadline = time.monotonic() + _PIPE_WAIT_S
    return data


def _too_large(largest: int) -> OSError:
    size = f"{largest >> 20} MiB" if largest >= 1 << 20 else f"{largest >> 10} KiB"
    return OSError(errno.EFBIG, f"it is larger than {size}: too many bytes")
