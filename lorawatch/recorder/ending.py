"""A run's end as its recorder writes it down: the ranks' exit records, the verdict, the state, the history."""

from __future__ import annotations

import contextlib
import time

from lorawatch.errors import LorawatchError
from lorawatch.recorder.accounting import journal_missing_steps
from lorawatch.recorder.ingesting import Ingesting
from lorawatch.recorder.lines import RecorderLines
from lorawatch.recorder.statefile import Loss, StateFile
from lorawatch.run.directory import RunDir
from lorawatch.run.records import Event, ExitRecord
from lorawatch.run.verdict import Verdict
from lorawatch.system.files import read_json

HISTORY_WAIT_S = 60.0
LOCK_WAIT_S = 2.0


def exit_records(run: RunDir, attempt: int, world_size: int) -> list[ExitRecord]:
    """How the ranks of an attempt ended; one that died by a signal has no record."""
    records = (read_json(run.exit_record(attempt, rank), ExitRecord) for rank in range(world_size))
    return [record for record in records if record is not None]


def verdict_of_loss(run: RunDir, lost: Loss) -> Verdict:
    """The verdict of a recorder that may write no more."""
    if lost == "deleted":
        return Verdict("lost", message=f"its directory was deleted while it ran: {run.root}", exit_code=1)
    return Verdict("lost", message="another recorder has taken the run over", exit_code=1)


def ended_event(verdict: Verdict) -> Event:
    """The event of a run's end."""
    text = verdict.state if verdict.message is None else f"{verdict.state}: {verdict.message}"
    return Event(
        at=time.time(),
        kind="ended",
        severity="error" if verdict.state in ("failed", "lost") else "info",
        message=text,
        detail={"failure": verdict.failure or ""},
    )


def write_end(
    run: RunDir, state_file: StateFile, ingesting: Ingesting, records: list[ExitRecord], lines: RecorderLines
) -> str | None:
    """Write the run's end and bring all lines into the history, while no other process may decide about the run.

    Args:
        state_file: With the end in its state.
        records: How the ranks ended.
        lines: Shows what cannot be written.

    Returns:
        Why the history waits, or None.
    """
    with contextlib.ExitStack() as alone:
        with contextlib.suppress(LorawatchError):  # nothing but the deletion of the run waits for this
            alone.enter_context(run.locked(LOCK_WAIT_S))
        if not state_file.end() and state_file.lost is None:
            lines.show_only("state_not_written", f"the end of the run cannot be written: {run.root}")
        return _into_history(run, state_file, ingesting, records, lines)


def _into_history(
    run: RunDir, state_file: StateFile, ingesting: Ingesting, records: list[ExitRecord], lines: RecorderLines
) -> str | None:
    """Bring all lines in, and say where ranks made more steps than came. Returns why the history waits, or None."""
    if state_file.lost == "taken":
        return None
    if state_file.lost == "deleted":
        from lorawatch.storage.edit import end_without_directory

        with contextlib.suppress(LorawatchError):
            end_without_directory(run.run_id, state_file.state)
        return None

    def on_wait(reason: str) -> None:
        lines.show_only("history_waits", reason, "warning")

    waits = ingesting.finish(HISTORY_WAIT_S, on_wait)
    if waits is None and (event := journal_missing_steps(run, records)):
        lines.show(event)
        waits = ingesting.finish(HISTORY_WAIT_S, on_wait)
    return waits
