"""Whose processes are ended: the run's, wherever they are, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from helpers import event_kinds, finish, lorawatch, sql, start, the_run, wait_for

from lorawatch.run.directory import RunDir
from lorawatch.run.records import RankStarted
from lorawatch.system.processes import ProcessId, boot_id

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py"))]
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setenv("LIGHT_MADE", str(folder))
    return folder


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any run."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def can_unshare() -> bool:
    return subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode == 0


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def end_at_once(process: subprocess.Popen[str], run: RunDir) -> None:
    """Ask for a stop twice; two signals at the same moment would be one."""
    process.send_signal(signal.SIGINT)
    wait_for(lambda: run.requested("stop"))
    process.send_signal(signal.SIGINT)


# A rank that writes whatever it likes of itself, and its recorder's end.
FORGED = """
import os, sys, time
from pathlib import Path
from lorawatch.run.journal import JournalWriter
writer = JournalWriter(Path(os.environ["LORAWATCH_RUN_DIR"]) / "journal" / "rank-0.jsonl")
writer.path.parent.mkdir(exist_ok=True)
Path(writer.path).write_text(sys.argv[1] + "\\n")
time.sleep(float(sys.argv[2]))
"""


def forged(process: ProcessId | None, pid: int) -> str:
    line = RankStarted(
        at=time.time(), attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=pid, device="cpu", process=process
    )
    return msgspec.json.encode(line).decode()


@pytest.mark.parametrize("how", ["bare pid", "identity"])
def test_a_pid_that_a_rank_writes_is_never_signalled_by_that_alone(
    lorawatch_home: Path, stranger: subprocess.Popen[bytes], how: str
) -> None:
    identity = ProcessId.of(stranger.pid) if how == "identity" else None
    process = start("--record", "--", sys.executable, "-c", FORGED, forged(identity, stranger.pid), "60")
    run = the_run(lorawatch_home)
    wait_for(lambda: (run.journal / "rank-0.jsonl").exists())
    wait_for(lambda: "foreign_rank" in event_kinds(run))
    end_at_once(process, run)
    out = finish(process)
    assert stranger.poll() is None, out
    assert "never signalled" in out
    assert run.state().ranks == []


def test_a_rank_of_an_older_lorawatch_ends_with_its_command_all_the_same(lorawatch_home: Path) -> None:
    """Its pid alone says nothing, but it descends from the command."""
    script = f'{sys.executable} -c \'import time; time.sleep(600)\' & exec {sys.executable} -c "$1" "$2" 600'
    process = start("--record", "--", "sh", "-c", script, "sh", FORGED, forged(None, 1))
    run = the_run(lorawatch_home)
    wait_for(lambda: (run.journal / "rank-0.jsonl").exists())
    children = psutil.Process(process.pid).children(recursive=True)
    end_at_once(process, run)
    finish(process)
    wait_for(lambda: not any(alive(c.pid) for c in children))


def test_a_rank_in_a_container_is_the_runs_and_no_other_process_has_its_pid(lorawatch_home: Path) -> None:
    if not can_unshare():
        pytest.skip("no right to make a PID namespace")
    # The rank is process 1 of its namespace; on the host that is init, and the low numbers after it are the system's.
    process = start("--record", "--", *CONTAINER, *LIGHT, "rank", "100000", "0.01")
    run = the_run(lorawatch_home)
    (rank,) = wait_for(lambda: run.state().ranks)
    assert "light.py rank" in " ".join(psutil.Process(rank.pid).cmdline()), "its pid as the recorder counts"
    assert rank.pid != 1
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert process.returncode == 143, out
    assert not alive(rank.pid)
    assert alive(1)
    assert "orphans" not in event_kinds(run)


def test_the_unshared_command_of_the_report_ends_and_harms_nobody(
    lorawatch_home: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """A rank in a namespace of its own reports a low pid; the strangers on the host with such pids live on."""
    if not can_unshare():
        pytest.skip("no right to make a PID namespace")
    script = (
        # inside, go through pids until the rank would have the stranger's
        f"import os, subprocess, sys\n"
        f"target = {stranger.pid}\n"
        "open('/proc/sys/kernel/ns_last_pid', 'w').write(str(target - 1))\n"
        f"p = subprocess.Popen([{sys.executable!r}, {LIGHT[1]!r}, 'rank', '20', '0.05'])\n"
        "print('pid', p.pid, flush=True)\n"
        "sys.exit(p.wait())\n"
    )
    result = lorawatch("--record", "--", *CONTAINER, sys.executable, "-c", script)
    run = the_run(lorawatch_home)
    assert f"pid {stranger.pid}\n" in (run.logs / "command.log").read_text(), "the rank had the stranger's number"
    assert result.returncode == 0, result.stdout + result.stderr
    assert stranger.poll() is None
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(20,)]


def test_what_a_killed_command_leaves_is_ended_and_named(lorawatch_home: Path) -> None:
    process = start("--record", "--", *LIGHT, "launch", "2", "100000", "0.02")
    run = the_run(lorawatch_home)
    wait_for(lambda: len(run.state().ranks) == 2)
    ranks = [r.pid for r in run.state().ranks]
    launcher = run.state().launcher
    assert launcher is not None
    fault = time.monotonic()
    os.kill(launcher.pid, signal.SIGKILL)
    out = finish(process)
    assert time.monotonic() - fault < 30
    assert process.returncode == 1
    assert not any(alive(pid) for pid in ranks)
    state = run.state()
    assert (state.state, state.failure) == ("failed", "signal")
    assert "SIGKILL" in (state.message or "")
    assert all(f"{pid} (" in out for pid in ranks), out
    assert "orphans" in event_kinds(run)


def test_what_a_command_that_ended_well_leaves_is_named_and_goes_on(lorawatch_home: Path, tmp_path: Path) -> None:
    script = "nohup setsid sleep 600 > /dev/null 2>&1 & echo $! > $0"
    result = lorawatch("--record", "--", "sh", "-c", script, str(tmp_path / "pid"))
    pid = int((tmp_path / "pid").read_text())
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        assert alive(pid)
        assert f"process {pid} (sleep 600) goes on" in result.stdout
        assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_run_is_not_deleted_while_a_process_of_it_lives(lorawatch_home: Path) -> None:
    process = start("--record", "--", *LIGHT, "launch", "2", "100000", "0.02")
    run = the_run(lorawatch_home)
    wait_for(lambda: len(run.state().ranks) == 2)
    process.kill()
    process.wait()
    code = "import sys; from lorawatch.storage.edit import delete_run; delete_run(sys.argv[1])"
    refused = subprocess.run([sys.executable, "-c", code, run.run_id], check=False, capture_output=True, text=True)
    assert "lost its recorder" in refused.stderr and f"lorawatch adopt {run.run_id}" in refused.stderr
    assert run.root.is_dir()
    adopter = start("adopt", run.run_id)
    wait_for(lambda: (r := run.state().recorder) is not None and r.pid == adopter.pid)
    adopter.send_signal(signal.SIGTERM)
    finish(adopter)
    done = subprocess.run([sys.executable, "-c", code, run.run_id], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not run.root.exists()
    assert sql(lorawatch_home, "SELECT count(*) FROM runs") == [(0,)]
    assert not list(lorawatch_home.glob(".*deleted*"))


def test_an_adopter_ends_what_outlived_a_launcher_that_died_unseen(lorawatch_home: Path) -> None:
    process = start("--record", "--", *LIGHT, "launch", "2", "100000", "0.02")
    run = the_run(lorawatch_home)
    wait_for(lambda: len(run.state().ranks) == 2 and len(run.state().family) >= 2)
    ranks, launcher = [r.pid for r in run.state().ranks], run.state().launcher
    assert launcher is not None
    process.kill()
    process.wait()
    os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: not alive(launcher.pid))
    assert all(alive(pid) for pid in ranks)
    result = lorawatch("adopt", run.run_id)
    assert not any(alive(pid) for pid in ranks), result.stdout
    assert run.state().state == "lost"


def test_identities_of_an_older_lorawatch_are_no_reason_to_signal(
    lorawatch_home: Path, stranger: subprocess.Popen[bytes]
) -> None:
    """An older recorder wrote down whoever had the pid that a rank named."""
    process = start("--record", "--", *LIGHT, "launch", "1", "100000", "0.02")
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().ranks)
    process.kill()
    process.wait()
    state = run.state()
    wrong = ProcessId.of(stranger.pid)
    assert wrong is not None and state.launcher is not None
    old = ProcessId(wrong.pid, wrong.started, boot_id())
    run.write_state(msgspec.structs.replace(state, ranks=[old], family=[]))
    os.kill(state.launcher.pid, signal.SIGKILL)
    lorawatch("adopt", run.run_id)
    assert stranger.poll() is None


def test_a_process_of_another_user_is_left_alone_without_a_word(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as somebody else")
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = ProcessId.of(process.pid)
        assert identity is not None
        code = (
            "import os, sys, msgspec; from lorawatch.system.processes import ProcessId\n"
            "who = msgspec.json.decode(sys.argv[1], type=ProcessId)\n"
            "os.setuid(65534); import signal; print(who.send(signal.SIGTERM))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, msgspec.json.encode(identity)], check=False, capture_output=True, text=True
        )
        assert said.stdout == "False\n", said.stderr
        assert process.poll() is None
        process.kill()
