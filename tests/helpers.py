"""Running the real program: every functional and fault test goes through the command line as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from lorawatch.run.directory import ENDED, RunDir, RunState
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Event, ExitRecord
from lorawatch.system.files import read_json

TINY = ["--record", "tiny"]
ONE_RANK = [*TINY, "--gpus", "cpu:1"]
"""Where a second rank would show nothing: a rank is five seconds of imports."""


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "lorawatch", *args]


def lorawatch(
    *args: str, timeout: float = 120, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


def start(*args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start one command in a session of its own, as a shell in another terminal would."""
    return subprocess.Popen(
        command(*args),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """Wait for a started command; what it printed."""
    out, _ = process.communicate(timeout=timeout)
    return out


def wait_for(condition: Callable[[], Any], timeout: float = 60, every: float = 0.05) -> Any:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {timeout} s: {condition}")
        time.sleep(every)


def the_run(home: Path) -> RunDir:
    """The only run of a home, once it is there."""
    folder = home / "runs"
    wait_for(lambda: folder.is_dir() and any(folder.iterdir()))
    (root,) = folder.iterdir()
    return RunDir(root)


def state_of(run: RunDir) -> RunState:
    return run.state()


def wait_for_step(run: RunDir, step: int, timeout: float = 90) -> None:
    """Wait until rank 0 has journaled a step; fails at once if the run has ended."""

    def reached() -> bool:
        assert run.state().state not in ENDED, run.state()
        return any(s["step"] >= step for s in journal_steps(run))

    wait_for(reached, timeout)


def journal_steps(run: RunDir, rank: int = 0) -> list[dict[str, Any]]:
    """Complete `step` lines of a rank's journal, as plain data."""
    try:
        text = run.rank_journal(rank).read_text()
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [d for d in (json.loads(line) for line in lines if line.strip()) if d.get("t") == "step"]


def event_kinds(run: RunDir) -> list[str]:
    """Kinds of the recorder's events in the run's journal, in order."""
    return [line.kind for line in JournalTail(run.events_journal).records() if isinstance(line, Event)]


def exit_records(run: RunDir, attempt: int = 0, world_size: int = 2) -> list[ExitRecord | None]:
    return [read_json(run.exit_record(attempt, rank), ExitRecord) for rank in range(world_size)]


def processes_of(run: RunDir) -> list[psutil.Process]:
    """Every live process that works in this run's directory: launcher and ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(run.root) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_all(run: RunDir, recorder: Any) -> None:
    """SIGKILL to the recorder, the launcher and the ranks; returns when they are gone."""
    recorder.kill()
    recorder.wait()
    for process in processes_of(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_for(lambda: not processes_of(run))


def ranks_of(run: RunDir, world_size: int = 2) -> dict[int, psutil.Process]:
    """The rank processes by rank, as their first journal lines say.

    Ranks journal by themselves: that rank 0's lines are on the disk does not mean that the others' are, so this waits
    for every rank's.
    """

    def started() -> dict[int, psutil.Process] | None:
        ranks: dict[int, psutil.Process] = {}
        for path in run.journal.glob("rank-*.jsonl"):
            text = path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():
                if '"rank_started"' in line:
                    data = json.loads(line)
                    ranks[data["rank"]] = psutil.Process(data["pid"])
        return ranks if len(ranks) >= world_size else None

    found: dict[int, psutil.Process] = wait_for(started)
    return found


def no_process_left(run: RunDir, timeout: float = 10) -> None:
    """Fails, and cleans up, where a process of the run is still there."""
    try:
        wait_for(lambda: not processes_of(run), timeout)
    finally:
        for process in processes_of(run):
            process.send_signal(signal.SIGKILL)


def sql(home: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the history file itself, once its writer has left it."""
    import duckdb

    deadline = time.monotonic() + 20
    while True:
        try:
            with duckdb.connect(str(home / "history.duckdb"), read_only=True) as connection:
                return connection.execute(query).fetchall()
        except duckdb.IOException:
            assert time.monotonic() < deadline, "the history is held"
            time.sleep(0.05)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def run_json(args: Sequence[str], **more: Any) -> tuple[int, list[dict[str, Any]], str]:
    """Run `… --json`: exit status, the lines, stderr."""
    result = lorawatch(*args, "--json", **more)
    return result.returncode, json_lines(result.stdout), result.stderr
