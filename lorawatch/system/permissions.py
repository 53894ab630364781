"""Who may read what lorawatch writes: its home is its user's alone, and what it makes for the user follows their umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

_PRIVATE = 0o077
_users: int | None = None


def keep_private() -> None:
    """From now on this process's files and folders are for this user alone; for a program's first line.

    What it starts for the user, and what it writes where the user says, gets `users_umask`.
    """
    global _users
    before = os.umask(_PRIVATE)
    if _users is None:
        _users = before


def users_umask() -> int:
    """The umask that this process was started with."""
    if _users is not None:
        return _users
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        mask = os.umask(_PRIVATE)  # there is no other way to ask
        os.umask(mask)
        return mask


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone; one that is there keeps its mode.

    Raises:
        OSError: It cannot be made.
    """
    missing = [folder]
    while not missing[-1].parent.exists() and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def export_mode(path: Path) -> int:
    """The mode of a file that is written where the user says: that of the file that is there, or what their umask leaves."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0o666 & ~users_umask()


def write_export(path: Path, text: str) -> None:
    """Write a text file where the user says, with the mode that `export_mode` gives.

    Raises:
        OSError: It cannot be written.
    """

    def opener(name: str, flags: int) -> int:
        try:
            descriptor = os.open(name, flags | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(name, flags, 0o666)
        os.fchmod(descriptor, 0o666 & ~users_umask())
        return descriptor

    with open(path, "w", encoding="utf-8", errors="backslashreplace", opener=opener) as file:
        file.write(text)


def shared_folders(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """Those of some folders that others than their owner may write to, each with who may; absent ones are left out."""
    readable = []
    for folder in folders:
        try:
            mode = folder.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH:
            readable.append((folder, "all users of this machine"))
        elif mode & stat.S_IWGRP:
            readable.append((folder, "its group"))
    return readable
