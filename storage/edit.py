"""Changes that a person makes to the history: tags, and taking a run out of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from lorawatch import paths
from lorawatch.errors import HistoryError
from lorawatch.files import beside
from lorawatch.liveness import deciding, refuse_living
from lorawatch.rundir import ENDED, RunDir, RunState
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import roll_back

RUN_TABLES = (
    "runs", "ranks", "gpus", "steps", "evaluations", "gpu_samples", "host_samples", "events", "run_summary",
    "journal_offsets",
)  # fmt: skip
"""The tables that have rows of runs."""


def set_tags(run_id: str, tags: Sequence[str], *, deadline_s: float = 0.5) -> None:
    """Give a run these tags, in the history and in its run directory.

    Raises:
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryDamaged: It is damaged, or not whole again yet; nothing has changed.
        HistoryError: It cannot be written.
    """
    with writing(deadline_s=deadline_s, whole=True) as connection:
        connection.execute("UPDATE runs SET tags = ? WHERE run_id = ?", [list(tags), run_id])
    run = RunDir(paths.runs_folder() / run_id)
    if (run.root / "run.json").exists():
        info = run.info()
        info.tags = list(tags)
        run.write_info(info)


def end_without_directory(run_id: str, state: RunState, *, deadline_s: float = 2.0) -> None:
    """Write down how a run ended whose directory is gone; one that has ended already stays as it is.

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
    """Take a run out of the history and remove its directory, checkpoints and adapter included.

    Raises:
        UsageError: Its recorder or a process of it lives.
        RunElsewhere, RunBusy: Another host looks after it, or may still do so; another command decides about it.
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryDamaged: It is damaged, or not whole again yet; nothing has changed.
        HistoryError: Its directory cannot be removed.
    """
    run = RunDir(paths.runs_folder() / run_id)
    if not run.root.is_dir():
        _delete_rows(run_id, deadline_s)
        return
    try:
        with deciding(run) as found:
            refuse_living(run, found, "deleted")
            _delete_rows(run_id, deadline_s)
            # At once, so that no command finds half of it.
            gone = beside(paths.home() / run_id, "deleted-")
            run.root.rename(gone)
    except OSError as error:
        raise HistoryError(f"{run.root} cannot be removed: {error.strerror}", hint="remove it by hand") from None
    for rest in (gone, *paths.home().glob(".*.deleted-*")):  # also what a killed command has left
        shutil.rmtree(rest, ignore_errors=True)
    if gone.exists():
        raise HistoryError(f"run {run_id} is deleted, but some of its files stay in {gone}", hint="remove them by hand")


def _delete_rows(run_id: str, deadline_s: float) -> None:
    with writing(deadline_s=deadline_s, whole=True) as connection:
        connection.execute("BEGIN")
        try:
            for table in RUN_TABLES:
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])  # noqa: S608  names of our own
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
    (paths.open_runs_folder() / run_id).unlink(missing_ok=True)
