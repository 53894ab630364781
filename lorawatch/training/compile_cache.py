"""Where compiled kernels are kept between runs; before torch is imported."""

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
    """Name folders of the lorawatch home to torch's compilers, and share the host's cores among its ranks.

    What the user has set stays. What lies in the folders is loaded and run, so they are this user's alone; where that
    cannot be had, torch keeps its own place.
    """
    env = os.environ if environment is None else environment
    for variable, name in _FOLDERS.items():
        if variable not in env and (folder := _own_folder(home.home() / "cache" / name)):
            env[variable] = str(folder)
    env.setdefault(_THREADS, str(max(1, min(_MOST_THREADS, usable_cores() // max(1, ranks_here)))))


def _own_folder(folder: Path) -> Path | None:
    try:
        make_private(folder)
        folder.chmod(0o700)  # refused where the folder is somebody else's
    except OSError:
        return None
    return folder if folder.stat().st_uid == os.getuid() else None
