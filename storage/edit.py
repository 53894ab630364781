"""A user's changes to the history: tags, and deleting a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lorawatch.errors import HistoryError
from lorawatch.run.directory import ENDED, RunDir, RunState
from lorawatch.run.liveness import deciding, refuse_living
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import roll_back
from lorawatch.system import home
from lorawatch.system.files import beside

RUN_TABLES = (
    "runs", "ranks", "gpus", "steps", "evaluations", "gpu_samples", "host_samples", "events", "run_summary",
    "journal_offsets",
)  # fmt: skip
"""The tables that have rows of runs."""


def set_tags(run_id: str, tags: Sequence[str], *, deadline_s: float = 0.5) -> None:
    """Set a run's tags, in the history and in its run directory.

    Raises:
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryDamaged: It is damaged, or not whole again yet; nothing has changed.
        HistoryError: It cannot be written.
    """
    with writing(deadline_s=deadline_s, whole=True) as connection:
        connection.execute("UPDATE runs SET tags = ? WHERE run_id = ?", [list(tags), run_id])
    run = RunDir(home.runs_folder() / run_id)
    if (run.root / "run.json").exists():
        info = run.info()
        info.tags = list(tags)
        run.write_info(info)


def end_without_directory(run_id: str, state: RunState, *, deadline_s: float = 2.0) -> None:
    """Record the end of a run whose directory is gone; one that has ended already stays as it is.

    Raises:
        HistoryBusy, HistoryError: The history cannot be written.
    """
    with writing(deadline_s=deadline_s) as connection:
        connection.execute(
            "UPDATE runs SET state = ?, failure = ?, message = ?, exit_code = ?, ended_at = coalesce(ended_at, now()) "
            "WHERE run_id = ? AND state NOT IN (SELECT unnest(?::VARCHAR[]))",
            [state.state, state.failure, state.message, state.exit_code, run_id, sorted(ENDED)],
        )


def delete_run(run_id: str, *, deadline_s: float = 0.5) -> None:
    """Delete a run from the history and remove its directory, with checkpoints and adapter.

    Raises:
        UsageError: Its recorder or one of its processes is alive.
        RunElsewhere, RunBusy: Another host records it, or may still do so; another command is changing it.
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryDamaged: It is damaged, or not whole again yet; nothing has changed.
        HistoryError: Its directory cannot be removed.
    """
    run = RunDir(home.runs_folder() / run_id)
    gone = beside(home.home() / run_id, "deleted-")
    try:
        if run.root.is_dir():
            with deciding(run) as decision:
                refuse_living(run, decision, "deleted")
                _delete_rows(run_id, deadline_s, (run.root, gone))
        else:
            _delete_rows(run_id, deadline_s)
    except OSError as error:
        raise _stays(run.root, error) from None
    for rest in (gone, *home.home().glob(".*.deleted-*")):  # also the rest of a killed command
        shutil.rmtree(rest, ignore_errors=True)
    if gone.exists():
        raise HistoryError(f"run {run_id} is deleted, but some of its files stay in {gone}", hint="remove them by hand")


def _delete_rows(run_id: str, deadline_s: float, move: tuple[Path, Path] | None = None) -> None:
    """Delete a run's rows, and rename its directory at the same moment.

    The directory is renamed while the history is held and before the deletion is committed, so that no ingest inserts the
    rows again, and a failure in between leaves a run that is still listed and can be deleted.

    Args:
        move: The directory and its new name; None where there is none.

    Raises:
        HistoryError: It cannot be moved, or the history cannot be written; nothing has changed.
    """
    with writing(deadline_s=deadline_s, whole=True) as connection:
        moved = False
        connection.execute("BEGIN")
        try:
            for table in RUN_TABLES:
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])  # noqa: S608  names of our own
            moved = move is not None and _moved(*move)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            if move is not None and moved:
                move[1].rename(move[0])
            raise
    (home.open_runs_folder() / run_id).unlink(missing_ok=True)


def _moved(root: Path, gone: Path) -> bool:
    try:
        root.rename(gone)
    except OSError as error:
        raise _stays(root, error) from None
    return True


def _stays(root: Path, error: OSError) -> HistoryError:
    return HistoryError(f"{root} cannot be removed: {error.strerror}", hint="remove it by hand")
