"""Runs whose recorder died: what is in their journals reaches the history, and their end is judged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lorawatch.errors import RunBusy, RunNotFound, UsageError
from lorawatch.launch.choose import launcher_of
from lorawatch.recorder.accounting import journal_missing_steps
from lorawatch.recorder.ending import exit_records
from lorawatch.recorder.last_words import LastWords, last_words
from lorawatch.recorder.logs import tail
from lorawatch.run.directory import RunDir, RunInfo, RunState
from lorawatch.run.journal import JournalWriter
from lorawatch.run.liveness import START_GRACE_S, Liveness, deciding, liveness
from lorawatch.run.records import Event, ExitRecord
from lorawatch.run.verdict import Evidence, Verdict, judge
from lorawatch.system import home

_BRIEFLY_S = 0.5


def catch_up() -> list[str]:
    """Bring every run that no recorder looks after into the history. Returns the ids of those that have ended.

    A run that another host looks after, or may still do, is left to that host.

    Raises:
        HistoryBusy: Somebody else holds the history; nothing is lost, a later call goes on.
        OSError: The directory of some run cannot be read; the others were brought in.
    """
    folder = home.open_runs_folder()
    ended: list[str] = []
    trouble: OSError | None = None
    for marker in sorted(folder.iterdir()) if folder.is_dir() else ():
        run = RunDir(home.runs_folder() / marker.name)
        try:
            if not (run.root / "run.json").exists() and not run.journal.is_dir():
                _drop(marker)  # what its ranks have made again in its place is no run
            elif _caught_up(run):
                ended.append(run.run_id)
        except OSError as error:  # one directory that cannot be read keeps no other run waiting
            trouble = trouble or error
    if trouble is not None:
        raise trouble
    return ended


def judge_lost(run: RunDir) -> RunState:
    """Judge a run whose host does not come back, on a person's word. Returns its state.

    Raises:
        RunBusy, RunNotFound: As `RunDir.locked`.
        UsageError: The run has ended, or is not silent.
    """
    with deciding(run, host_gone=True) as status:
        if status.kind == "ended":
            raise UsageError(
                f"run {run.run_id} has ended already ({run.state().state})",
                hint=f"lorawatch show {run.run_id} says how",
            )
        if status.kind not in ("silent", "over"):
            raise UsageError(
                f"the host of run {run.run_id} is not gone: the run lives here", hint="leave --host-gone out"
            )
        return _judge(run, status)


def _caught_up(run: RunDir) -> bool:
    """Whether the run has ended and is wholly in the history."""
    from lorawatch.storage.ingest import finish_run, ingest_run

    try:
        kind = liveness(run).kind
        if kind == "unrecorded":
            ingest_run(run)
        if kind not in ("ended", "over"):
            return False
        with run.locked(_BRIEFLY_S):  # whoever decides about it meanwhile goes first
            status = liveness(run)
            if status.kind == "over":
                _judge(run, status)
            elif status.kind != "ended":
                return False
            finish_run(run)
            if status.kind == "over" and journal_missing_steps(run, _last_records(run, run.info_left())):
                finish_run(run)
    except (RunBusy, RunNotFound):
        return False
    return True


def _drop(marker: Path) -> None:
    """Take away the marker of a run whose directory is gone; a young one may belong to a directory that another host has
    just made and this one does not see yet."""
    from lorawatch.storage.edit import end_without_directory

    with contextlib.suppress(OSError):
        if time.time() - marker.stat().st_mtime > START_GRACE_S:
            words = "its directory was deleted before it had ended"
            end_without_directory(marker.name, RunState(state="lost", message=words, exit_code=1))
            marker.unlink()


def _judge(run: RunDir, status: Liveness) -> RunState:
    """Write down how a run ended that no recorder watched to its end. The caller has its lock."""
    try:
        state = run.state()
    except (OSError, msgspec.MsgspecError):
        state = RunState()
    info = run.info_left()
    records = _last_records(run, info)
    last = last_words(run, records)
    verdict = _verdict(run, info, status, records, last)
    state.state = verdict.state
    state.failure = verdict.failure
    state.message = verdict.message
    state.exit_code = verdict.exit_code
    state.step = max(state.step, last.step)
    state.ended_at = max(state.heartbeat_at or 0.0, last.at or 0.0) or time.time()
    if state.elapsed_s is not None and state.heartbeat_at is not None:  # the ranks went on without a recorder
        state.elapsed_s += state.ended_at - state.heartbeat_at
    journal = JournalWriter(run.events_journal)
    words = f"no recorder saw the run's end: {verdict.state}" + (f": {verdict.message}" if verdict.message else "")
    journal.append(Event(at=state.ended_at, kind="ended_unseen", severity="warning", message=words))
    journal.close()
    run.write_state(state)
    return state


def _verdict(run: RunDir, info: RunInfo, status: Liveness, records: Sequence[ExitRecord], last: LastWords) -> Verdict:
    launcher = launcher_of(run, info)
    end = launcher.end(None, tail(run.logs / launcher.log_name))
    if not records and not end.tells:
        if status.silent_s is not None and status.host:
            how = "the host restarted" if status.kind == "over" else f"{status.words}, and it is given up"
            return Verdict("lost", "host_lost", f"{status.host} was recording the run: {how}", 1)
        return Verdict("lost", message="the recorder and the workers ended together, without a word", exit_code=1)
    return judge(
        Evidence(
            end,
            records,
            info.world_size,
            stop_requested="stop" if run.requested("stop") else None,
            step=last.step,
        )
    )


def _last_records(run: RunDir, info: RunInfo) -> list[ExitRecord]:
    return exit_records(run, run.last_attempt(), info.world_size)
