"""Ends of logs and journals."""

from __future__ import annotations

import os
from pathlib import Path

from lorawatch.system.files import open_regular


def size_of(path: Path) -> int:
    """A file's bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: os.PathLike[str], limit: int = 64 << 10, *, begin: int = 0) -> str:
    """The end of a log as text; empty where there is none, or where a pipe, a device or a link lies in its place.

    Args:
        limit: At most so many bytes.
        begin: Nothing before this byte.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - limit, begin, 0))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
