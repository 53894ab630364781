"""Where lorawatch keeps what it writes: one folder, `LORAWATCH_HOME`, movable as a whole."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lorawatch.errors import UsageError
from lorawatch.system.user_files import expanded
from lorawatch.text.sanitize import encodable


def home() -> Path:
    """The folder of runs and history: `$LORAWATCH_HOME`, else the platform's state folder.

    Raises:
        UsageError: Its path is no UTF-8, which neither the history nor a journal can hold, or has a `?`, at which DuckDB
            ends the name of a file that it writes.
    """
    named = os.environ.get("LORAWATCH_HOME")
    if named:
        folder = expanded(named).absolute()
    else:
        import platformdirs  # 13 ms: only where the variable is not set

        folder = Path(platformdirs.user_state_dir("lorawatch"))
    if encodable(str(folder)) != str(folder):
        raise UsageError(
            f"the home {encodable(str(folder))} has a path that is no UTF-8",
            hint="set LORAWATCH_HOME to a folder whose path is UTF-8 text",
        )
    if "?" in str(folder):
        raise UsageError(
            f"the home {folder} has a question mark in its path, which DuckDB cannot write to",
            hint="set LORAWATCH_HOME to another folder",
        )
    return folder


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
