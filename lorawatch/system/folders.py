"""Folders that are replaced whole: at any moment, also after a crash, there is either the old one or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def replace(finished: Path, target: Path) -> None:
    """Give a finished folder its name, on the disk after a power cut; what had the name goes.

    Two names are exchanged in one step where the file system can (all usual ones of Linux). On one that cannot, NFS for one,
    a death between two renames leaves the old folder under `.NAME.old`, which `recover` brings back.

    Args:
        finished: Beside the target, a folder of files.
        target: Absent, or a folder of files.

    Raises:
        OSError: The disk refuses; the target is as it was.
    """
    for file in finished.iterdir():
        make_durable(file)
    make_durable(finished)
    if not target.exists():
        finished.rename(target)
    elif _exchange(finished, target):
        shutil.rmtree(finished, ignore_errors=True)
    else:
        old = _old(target)
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        try:
            finished.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    make_durable(target.parent)


def recover(target: Path) -> None:
    """Bring back what a death in the middle of `replace` has hidden, and remove what it has left half done.

    For a folder that is not being written to. Temporary names are `.NAME.…`.
    """
    with contextlib.suppress(OSError):
        if not target.exists() and _old(target).is_dir():
            _old(target).rename(target)
        for rest in target.parent.glob(f".{target.name}.*"):
            shutil.rmtree(rest, ignore_errors=True)


def make_durable(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder.

    Raises:
        OSError: It cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change their names; whether the C library and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
