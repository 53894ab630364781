"""A home that several hosts share: whoever is not the run's own host leaves a run that may live alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import command, finish, lorawatch, sql, start, the_run, wait_for

from lorawatch.run.directory import RunDir
from lorawatch.run.liveness import SILENT_S, heartbeat_age, liveness
from lorawatch.system import home
from lorawatch.system.processes import ProcessId

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py"))]
Living = tuple[RunDir, subprocess.Popen[str]]
DELETE = "import sys; from lorawatch.storage.edit import delete_run; delete_run(sys.argv[1])"


class OtherHost:
    """Runs commands under another boot id and, if wanted, another host name, with the same files."""

    def __init__(self, folder: Path, name: str | None = "n2") -> None:
        self.boot_id = folder / f"boot_id-{name}"
        self.boot_id.write_text(f"{uuid.uuid4()}\n")
        rename = f"hostname {name} && " if name else ""
        self.words = f'{rename}mount --bind {self.boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        words = ["unshare", "--mount", "--uts", "sh", "-c", self.words, "sh", *args]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)

    def lorawatch(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run(*command(*args))


@pytest.fixture
def n2(tmp_path: Path) -> OtherHost:
    host = OtherHost(tmp_path)
    if host.run("true").returncode:
        pytest.skip("no right to make namespaces")
    return host


@pytest.fixture
def living(lorawatch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Living]:
    """A run that lives on this host."""
    monkeypatch.setenv("LIGHT_MADE", str(tmp_path))
    process = start("--record", "--", *LIGHT, "launch", "2", "100000", "0.02")
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state == "running" and len(run.state().ranks) == 2)
    yield run, process
    state = run.state() if run.root.exists() else None
    process.kill()
    process.communicate()
    for identity in [state.launcher, *state.ranks] if state else []:
        if identity is not None:
            identity.send(signal.SIGKILL)


def grow_old(run: RunDir, seconds: float = SILENT_S + 30) -> None:
    """As if nothing had been written for a while."""
    at = time.time() - seconds
    for path in (run.root / "state.json", run.root / "run.json", *run.journal.iterdir()):
        os.utime(path, (at, at))


def stop_everything(run: RunDir, process: subprocess.Popen[str]) -> None:
    """SIGSTOP, so that nothing is written and everybody lives."""
    state = run.state()
    process.send_signal(signal.SIGSTOP)
    for identity in [state.launcher, *state.ranks]:
        assert identity is not None and identity.send(signal.SIGSTOP)


def test_another_host_changes_nothing_of_a_living_run(living: Living, n2: OtherHost) -> None:
    run, process = living
    for args in (("runs",), ("show", run.run_id), ("compare",), ("adopt", run.run_id)):
        n2.lorawatch(*args)
    resumed = n2.lorawatch("--record", "--resume", run.run_id)
    adopted = n2.lorawatch("adopt", run.run_id)
    deleted = n2.run(sys.executable, "-c", DELETE, run.run_id)
    assert (resumed.returncode, adopted.returncode) == (1, 1)
    for said in (resumed.stderr, adopted.stderr, deleted.stderr):
        assert f"run {run.run_id} is recorded on {home.host_name()}" in said
    state = run.state()
    assert state.state == "running"
    assert state.recorder is not None and state.recorder.pid == process.pid
    assert (home.open_runs_folder() / run.run_id).exists()
    assert process.poll() is None
    asked = n2.lorawatch("stop", run.run_id)  # asking is for whoever may write to the directory
    assert f"stopping at the next step (recorded on {home.host_name()})" in asked.stdout
    assert finish(process)
    assert run.state().state == "stopped"


def test_a_silent_host_is_named_and_only_a_person_gives_it_up(
    living: Living, n2: OtherHost, lorawatch_home: Path
) -> None:
    run, process = living
    # its recorder brings it in every five seconds
    wait_for(lambda: home.history_file().exists() and sql(lorawatch_home, "SELECT count(*) FROM runs") == [(1,)])
    stop_everything(run, process)
    grow_old(run)
    listed, shown = n2.lorawatch("runs"), n2.lorawatch("show", run.run_id)
    words = f"no word from {home.host_name()} for 1:"
    assert f"{run.run_id}: {words}" in listed.stderr
    assert words in shown.stdout
    assert run.state().state == "running"
    refused = n2.lorawatch("adopt", run.run_id)
    assert refused.returncode == 1
    assert f"no word from {home.host_name()} for 1:" in refused.stderr
    assert f"lorawatch stop {run.run_id} --host-gone" in refused.stderr
    here = lorawatch("stop", run.run_id, "--host-gone")
    assert here.returncode == 2, "on the run's own host its processes are seen"
    assert "the run lives here" in here.stderr
    given_up = n2.lorawatch("stop", run.run_id, "--host-gone")
    assert given_up.returncode == 0, given_up.stderr
    assert (run.state().state, run.state().failure) == ("lost", "host_lost")
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("lost", "host_lost")]
    # It was wrong: the host comes back, and what lives there writes the truth.
    for identity in [run.state().launcher, *run.state().ranks]:
        if identity is not None:
            identity.send(signal.SIGCONT)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: run.state().state == "running")


def test_a_recorder_whose_run_was_taken_meanwhile_ends_its_own_processes(
    living: Living,
) -> None:
    run, process = living
    state = run.state()
    ranks = state.ranks
    other = ProcessId(1, 1, "another boot", 7, "n2", "m")
    process.send_signal(signal.SIGSTOP)
    state.recorder, state.state = other, "running"
    run.write_state(state)
    process.send_signal(signal.SIGCONT)
    out = finish(process)
    assert process.returncode == 1
    assert "another recorder has taken the run over" in out
    assert not any(rank.alive() for rank in ranks)
    assert run.state().recorder == other


def test_the_same_machine_after_a_reboot_judges_its_runs(living: Living, tmp_path: Path) -> None:
    run, process = living
    rebooted = OtherHost(tmp_path, name=None)
    if rebooted.run("true").returncode:
        pytest.skip("no right to make namespaces")
    stop_everything(run, process)
    rebooted.lorawatch("runs")
    assert run.state().state == "running", "heard a moment ago"
    grow_old(run)
    rebooted.lorawatch("runs")
    assert (run.state().state, run.state().failure) == ("lost", "host_lost")
    assert "the host restarted" in (run.state().message or "")


def test_a_container_on_the_same_host_is_another_host_to_a_run(living: Living) -> None:
    run, process = living
    inside = ["unshare", "--pid", "--fork", "--mount-proc", *command("runs")]
    if subprocess.run(inside, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("no right to make a PID namespace")
    assert run.state().state == "running"
    assert process.poll() is None


def test_the_age_of_a_heartbeat_is_by_the_clock_of_the_files(living: Living) -> None:
    run, process = living
    assert liveness(run).kind == "recorded"
    assert heartbeat_age(run) < 5
    stop_everything(run, process)
    grow_old(run, 500)
    assert 495 < heartbeat_age(run) < 520
    assert liveness(run).kind == "recorded", "its own host sees the process itself"
    assert not [p for p in run.root.iterdir() if "clock" in p.name]
