"""Where lorawatch keeps what it writes: one folder, `LORAWATCH_HOME`, movable as a whole."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def home() -> Path:
    """The folder of runs and history: `$LORAWATCH_HOME`, else the platform's state folder."""
    named = os.environ.get("LORAWATCH_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs  # 13 ms: only where the variable is not set

    return Path(platformdirs.user_state_dir("lorawatch"))


def runs_folder() -> Path:
    """The folder with one run directory a run."""
    return home() / "runs"


def history_file() -> Path:
    """The DuckDB file that is derived from the journals of all runs."""
    return home() / "history.duckdb"


def open_runs_folder() -> Path:
    """A marker file for each run whose journals are not wholly in the history yet.

    So that a command can catch up on those few runs without visiting every run directory.
    """
    return home() / "open"


def host_name() -> str:
    """This machine's short name, fit for a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname().split(".")[0]) or "host"
