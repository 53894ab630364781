"""Processes that a recorder had no time to write down before it was killed: they are the run's all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import finish, lorawatch, no_process_left, sql, start, the_run, wait_for
from soundness import left_processes

from lorawatch.liveness import liveness, started_for
from lorawatch.processes import ProcessId

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py")), "launch", "2", "100000", "0.02"]
# A recorder that is killed once it has started its command, before it writes down which process that is.
TOO_EARLY = """
import os, signal, sys
from lorawatch.recorder.statefile import StateFile
StateFile.beat = lambda self: os.kill(os.getpid(), signal.SIGKILL)
from lorawatch.cli.main import run
run(["--record", "--", *sys.argv[1:]])
"""


@pytest.fixture(autouse=True)
def made(tmp_path: Path, lorawatch_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setenv("LIGHT_MADE", str(folder))
    yield
    left_processes(lorawatch_home, wait_s=0)


def test_a_command_whose_recorder_was_killed_before_it_knew_it_is_adopted(lorawatch_home: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", TOO_EARLY, *LIGHT], check=False, timeout=60, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    run = the_run(lorawatch_home)
    assert run.state().launcher is None
    lorawatch("runs")
    assert liveness(run).kind == "unrecorded"
    adopter = start("adopt", run.run_id)
    wait_for(lambda: run.state().state == "running" and len(run.state().ranks) == 2)
    launcher = run.state().launcher
    assert launcher is not None and "light.py launch" in " ".join(psutil.Process(launcher.pid).cmdline())
    assert lorawatch("stop", run.run_id, "--wait").returncode == 0
    finish(adopter)
    assert run.state().state == "stopped"
    assert not started_for(run)


def test_ranks_that_were_started_just_before_the_recorder_and_the_launcher_were_killed_are_ended(
    lorawatch_home: Path,
) -> None:
    process = start("--record", "--", *LIGHT)
    run = the_run(lorawatch_home)
    launcher = wait_for(lambda: run.state().launcher)
    ranks = wait_for(lambda: psutil.Process(launcher.pid).children())
    process.kill()
    launcher.send(signal.SIGKILL)
    process.wait()
    known = {pid for pid, _ in run.state().family}
    unseen = [ProcessId.of(rank.pid) for rank in ranks if rank.pid not in known]
    assert unseen, "a rank that is not written down"
    lorawatch("runs")
    assert run.state().state not in ("lost", "failed"), "it lives"
    result = lorawatch("adopt", run.run_id)
    assert result.returncode == 1, result.stdout + result.stderr
    assert not any(rank is not None and rank.alive() for rank in unseen)
    no_process_left(run)
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("lost",)]
