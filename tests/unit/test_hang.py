"""Whom a run that takes no step waits for: real processes, one of them stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from helpers import wait_for
from history import make_run, step

from lorawatch.recorder import hang
from lorawatch.recorder.hang import Blame, HangWatch, blame
from lorawatch.recorder.workers import Workers
from lorawatch.run.directory import RunDir
from lorawatch.run.live import LiveView
from lorawatch.run.records import Event, PhaseChange, RankStarted
from lorawatch.system.processes import ProcessId

# A launcher with two ranks below it, which say that they are ready.
LAUNCHER = """
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1], path]) for path in sys.argv[2:]]
for rank in ranks:
    rank.wait()
"""
RANK = """
import faulthandler, signal, sys, time
from lorawatch.system.processes import ProcessId
import msgspec
faulthandler.register(signal.SIGUSR1, file=open(sys.argv[1], "a"))
print(msgspec.json.encode(ProcessId.own()).decode(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("stopped", "mute", "steps", "separate", "found"),
    [
        ({}, [], {0: 7, 1: 7}, False, Blame()),
        ({}, [], {0: 7, 1: 6}, False, Blame("; rank 1 is behind the others", 1)),
        ({}, [], {0: 7, 1: 6}, True, Blame()),  # nobody waits for anybody
        ({}, [0], {1: 6}, False, Blame("; rank 0 is frozen or waiting in the kernel (no answer to a signal)", 0)),
        ({1: 55}, [1], {}, False, Blame("; rank 1 is stopped", 1, ": kill -CONT 55 lets it go on")),
        ({1: 55, 2: 56}, [], {}, True, Blame("; ranks 1, 2 are stopped", None, ": kill -CONT 55 56 lets it go on")),
    ],
)
def test_the_surest_sign_is_told(
    stopped: dict[int, int], mute: list[int], steps: dict[int, int], separate: bool, found: Blame
) -> None:
    assert blame(steps, 2, stopped=stopped, mute=mute, separate=separate) == found


@pytest.fixture
def ranks(lorawatch_home: Path) -> Iterator[tuple[RunDir, Workers, list[ProcessId]]]:
    """Two ranks that answer when they are asked for their stacks, below a launcher of a run."""
    run = make_run()
    run.stacks.mkdir()
    stacks = [str(run.stacks / f"rank-{rank}.txt") for rank in (0, 1)]
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK, *stacks], stdout=subprocess.PIPE)
    assert process.stdout is not None
    launcher = ProcessId.of(process.pid)
    assert launcher is not None
    workers = Workers(launcher, process)
    said = [msgspec.json.decode(process.stdout.readline(), type=ProcessId) for _ in stacks]
    yield run, workers, said
    workers.kill()
    process.communicate()


def test_a_stopped_rank_is_named_and_the_run_ended(
    ranks: tuple[RunDir, Workers, list[ProcessId]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "WARN_AT_LEAST_S", 0.3)
    monkeypatch.setattr(hang, "ANSWER_S", 0.5)
    run, workers, processes = ranks
    view = LiveView(2)
    for rank, process in enumerate(processes):
        view.feed(
            RankStarted(
                at=0, attempt=0, rank=rank, local_rank=rank, world_size=2, host="h", pid=process.pid, device="cpu",
                process=process,
            )
        )  # fmt: skip
        view.feed(PhaseChange(at=0, attempt=0, rank=rank, name="training"))
        view.feed(step(1, rank, duration_s=0.01))
        assert workers.note_rank(rank, process) == "ours"
    assert processes[1].send(signal.SIGSTOP)
    told: list[Event] = []
    watch = HangWatch(run, view, 1.2, told.append)

    def ended() -> bool:
        watch.look(workers, 0.0)
        return watch.verdict is not None

    wait_for(ended, 20)
    (event,) = told
    named = f"; rank 1 is stopped: kill -CONT {processes[1].pid} lets it go on; "
    assert (event.kind, event.severity, event.rank) == ("hang", "error", 1)
    assert event.message.startswith("no step for ") and named in event.message
    assert watch.verdict is not None and "; rank 1 is stopped; the ranks' stacks" in watch.verdict
    stacks = "".join(path.read_text() for path in run.stacks.iterdir())
    assert "line 7 in <module>" in stacks, "the rank that waits shows where"
    assert workers.look() == []


def test_a_process_without_a_handler_is_not_asked_for_its_stacks() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        launcher = ProcessId.of(process.pid)
        assert launcher is not None
        workers = Workers(launcher)
        assert workers.note_rank(0, launcher) == "ours"
        assert workers.ask_stacks() == []
        time.sleep(0.2)
        assert process.poll() is None  # SIGUSR1 would have ended it
        process.kill()
