"""Folders and threads of torch's compilers; set before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from lorawatch.system import home
from lorawatch.system.permissions import make_private
from lorawatch.system.processes import usable_cores

_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_MOST_THREADS = 16


def set_up(ranks_here: int, environment: MutableMapping[str, str] | None = None) -> None:
    """Keep compiled kernels in the lorawatch home between runs, and share the host's cores among its ranks.

    Variables that the user has set stay. Files in these folders are loaded and run, so only this user may write there.
    Where such a folder cannot be made, torch uses its own.

    Args:
        ranks_here: Ranks on this host.
        environment: Gets the variables; None: this process's environment.
    """
    env = os.environ if environment is None else environment
    for variable, name in _FOLDERS.items():
        if variable not in env and (folder := _own_folder(home.home() / "cache" / name)):
            env[variable] = str(folder)
    env.setdefault(_THREADS, str(max(1, min(_MOST_THREADS, usable_cores() // max(1, ranks_here)))))


def _own_folder(folder: Path) -> Path | None:
    try:
        make_private(folder)
        folder.chmod(0o700)  # fails where the folder belongs to another user
    except OSError:
        return None
    return folder if folder.stat().st_uid == os.getuid() else None
