"""Runs whose recorder died: what is in their journals reaches the history, and their end is judged."""

from __future__ import annotations

import time

import msgspec

from lorawatch import paths
from lorawatch.recorder.workers import Workers
from lorawatch.records import ExitRecord
from lorawatch.rundir import ENDED, RunDir, RunState, read_json
from lorawatch.verdict import Evidence, Verdict, judge

# A prepared run has no recorder for a moment; only after this is it taken for given up.
START_GRACE_S = 60.0


def catch_up() -> list[str]:
    """Bring every run that no recorder looks after into the history. Returns the ids of those that have ended.

    Raises:
        HistoryBusy: Somebody else holds the history; nothing is lost, a later call goes on.
    """
    folder = paths.open_runs_folder()
    ended: list[str] = []
    if not folder.is_dir():
        return ended
    from lorawatch.storage.ingest import finish_run, ingest_run

    for marker in sorted(folder.iterdir()):
        run = RunDir(paths.runs_folder() / marker.name)
        if not run.root.is_dir():
            marker.unlink(missing_ok=True)  # its directory was deleted
            continue
        try:
            state = run.state()
        except msgspec.MsgspecError:
            state = RunState()
        if state.state not in ENDED:
            if _looked_after(run, state):
                continue
            if _workers_alive(state):
                ingest_run(run)
                continue
            _judge(run, state)
        finish_run(run)
        ended.append(run.run_id)
    return ended


def _looked_after(run: RunDir, state: RunState) -> bool:
    if state.recorder is not None:
        return state.recorder.alive()
    try:
        return time.time() - run.info().created_at < START_GRACE_S
    except (OSError, msgspec.MsgspecError):
        return False


def _workers_alive(state: RunState) -> bool:
    return state.launcher is not None and Workers(state.launcher, None, state.ranks).any_alive()


def _judge(run: RunDir, state: RunState) -> None:
    """Write down how a run ended that nobody watched to its end."""
    info = run.info()
    attempts = sorted(run.logs.glob("attempt_*"), key=lambda p: int(p.name.partition("_")[2]))
    attempt = int(attempts[-1].name.partition("_")[2]) if attempts else 0
    records = [
        r for rank in range(info.world_size) if (r := read_json(run.exit_record(attempt, rank), ExitRecord)) is not None
    ]
    if records:
        verdict = judge(
            Evidence(
                None,
                records,
                info.world_size,
                own_command=info.own_command,
                stop_requested="stop" if run.requested("stop") else None,
            )
        )
    else:
        verdict = Verdict("lost", message="the recorder and the workers ended together, without a word", exit_code=1)
    state.state = verdict.state
    state.failure = verdict.failure
    state.message = verdict.message
    state.exit_code = verdict.exit_code
    state.ended_at = state.heartbeat_at or time.time()
    run.write_state(state)
