"""Changes that a person makes to the history: tags, and taking a run out of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from lorawatch import paths
from lorawatch.errors import HistoryError, LorawatchError
from lorawatch.rundir import ENDED, RunDir
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


def delete_run(run_id: str, *, deadline_s: float = 0.5) -> None:
    """Take a run out of the history and remove its directory, checkpoints and adapter included.

    Raises:
        LorawatchError: It lives, or its directory cannot be removed.
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryDamaged: It is damaged, or not whole again yet; nothing has changed.
    """
    run = RunDir(paths.runs_folder() / run_id)
    if run.root.is_dir():
        state = run.state()
        if state.state not in ENDED and state.recorder is not None and state.recorder.alive():
            raise LorawatchError(f"run {run_id} lives", hint="stop it first")
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
    try:
        if run.root.is_dir():
            shutil.rmtree(run.root)
    except OSError as error:
        raise HistoryError(f"{run.root} cannot be removed: {error.strerror}", hint="remove it by hand") from None
