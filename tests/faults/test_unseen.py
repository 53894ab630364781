"""Moments in which a run seems to have no process: before its recorder began, and before that wrote down what it had started."""

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

from lorawatch.launch.handover import send
from lorawatch.recorder.prepare import prepare_command
from lorawatch.run.directory import RunState
from lorawatch.run.liveness import liveness, started_for
from lorawatch.system.processes import ProcessId

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


def test_a_detached_run_has_a_recorder_from_its_first_moment(lorawatch_home: Path) -> None:
    """However long its recorder takes to load: no command may judge the run meanwhile."""
    result = lorawatch("--record", "--detach", "--", "sleep", "60")
    assert result.returncode == 0, result.stderr
    run = the_run(lorawatch_home)
    recorder = run.state().recorder
    assert recorder is not None and recorder.alive()
    assert "supervise" in recorder.command(400)
    assert lorawatch("stop", run.run_id, "--wait").returncode == 0


def test_a_run_that_was_given_up_before_its_recorder_began_is_not_started(lorawatch_home: Path) -> None:
    run = prepare_command(["sleep", "60"], [])
    run.write_state(RunState(state="lost", exit_code=1))
    words = [sys.executable, "-P", "-m", "lorawatch", "supervise", run.run_id]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        send(["sleep", "60"], process.stdin, run.logs / "recorder.log")
        said = process.stderr.read().decode()
    assert process.returncode == 2
    assert f"run {run.run_id} has ended (lost) before its recorder began" in said
    assert run.state().recorder is None
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
