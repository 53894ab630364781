"""A process is known by more than its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from helpers import wait_for

from lorawatch.recorder.workers import Workers
from lorawatch.system import processes
from lorawatch.system.processes import ProcessId, descendants, match, process_table


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process  # type: ignore[misc]
        process.kill()


def identity(process: subprocess.Popen[bytes]) -> ProcessId:
    found = ProcessId.of(process.pid)
    assert found is not None
    return found


def test_a_process_knows_itself_as_others_see_it() -> None:
    own = ProcessId.own()
    assert own == ProcessId.of(os.getpid())
    assert own.alive() and own.here and not own.before_reboot
    assert msgspec.json.decode(msgspec.json.encode(own), type=ProcessId) == own


def test_each_part_of_an_identity_decides(child: subprocess.Popen[bytes]) -> None:
    there = identity(child)
    assert there.alive()
    changed = {"pid": os.getpid(), "started": there.started - 1, "boot_id": "another", "pid_namespace": 4242}
    for name, value in changed.items():
        other = msgspec.structs.replace(there, **{name: value})
        assert not other.alive(), name
        assert not other.send(signal.SIGTERM), name
    assert child.poll() is None
    assert there.send(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    assert not there.alive() and not there.send(signal.SIGTERM)


def test_an_identity_from_before_namespaces_were_written_down_is_still_known(child: subprocess.Popen[bytes]) -> None:
    there = identity(child)
    old = msgspec.json.decode(
        f'{{"pid": {there.pid}, "started": {there.started}, "boot_id": "{there.boot_id}"}}', type=ProcessId
    )
    assert old.alive()


def test_the_same_machine_after_a_reboot_is_certain_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = msgspec.structs.replace(ProcessId.own(), boot_id="an earlier one")
    assert before.machine and before.before_reboot
    assert not msgspec.structs.replace(before, host="n2").before_reboot
    assert not msgspec.structs.replace(before, machine="b").before_reboot
    monkeypatch.setattr(processes, "machine_digest", lambda: "")
    assert not msgspec.structs.replace(before, machine="").before_reboot, "a machine without an id cannot tell"


def test_descendants_are_found_through_generations_and_past_a_zombie(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        table = process_table()
        assert [p.pid for p in descendants([process.pid], table)] == [grandchild]
        assert grandchild in [p.pid for p in descendants([os.getpid()], table)]
        Workers(identity(process), process).kill()
        assert ProcessId.of(grandchild) is None


def test_a_word_of_a_process_is_matched_only_with_itself(child: subprocess.Popen[bytes]) -> None:
    there = identity(child)
    among = list(process_table().values())
    assert match(there, among) == there
    for change in ({"started": there.started + 1}, {"pid": there.pid + 1}, {"boot_id": "b"}, {"pid_namespace": 7}):
        assert match(msgspec.structs.replace(there, **change), among) is None, change  # type: ignore[arg-type]
    assert match(there, [p for p in among if p.pid != there.pid]) is None, "it must be among the run's"


def test_a_process_in_a_namespace_below_is_found_by_what_it_says_of_itself() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    script = (
        "import msgspec, time; from lorawatch.system.processes import ProcessId\n"
        "print(msgspec.json.encode(ProcessId.own()).decode(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([*command, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.skip("no right to make a PID namespace")
        said = msgspec.json.decode(line, type=ProcessId)
        assert said.pid < 10 and not said.here and not said.alive() and not said.send(signal.SIGKILL)
        workers = Workers(identity(process), process)
        assert workers.note_rank(0, said) == "ours"
        found = workers.ranks[0]
        assert found.alive() and found.pid != said.pid
        assert workers.kill()
        assert not found.alive()


def test_own_identity_is_right_where_proc_is_the_namespace_aboves() -> None:
    """`unshare --pid` without a /proc of its own: /proc/PID would be somebody else."""
    script = (
        "from lorawatch.system.processes import *; import os\n"
        "own = ProcessId.own(); print(own.pid, own.here, ProcessId.of(own.pid), process_table(), own.alive())"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    if "unshare" in done.stderr:
        pytest.skip("no right to make a PID namespace")
    assert done.stdout == "1 False None {} False\n", done.stderr


def test_what_outlives_a_launcher_is_found_where_orphans_are_kept() -> None:
    code = """
import os, subprocess, sys, time
from lorawatch.system.processes import ProcessId, keep_orphans
from lorawatch.recorder.workers import Workers
assert keep_orphans()
process = subprocess.Popen(["sh", "-c", "(sleep 60 & exec sleep 60) & sleep 0.2; kill -9 $$"])
workers = Workers(ProcessId.of(process.pid), process, orphans=True)
process.wait()
print(workers.exit_code, len(workers.leftovers()), workers.launcher_alive(), workers.exit_code, flush=True)
print(all("sleep" in str(x) for x in workers.leftovers()), workers.end_leftovers(), len(workers.leftovers()))
from lorawatch.system.processes import process_table
print([p.ended for p in process_table().values() if p.parent == os.getpid()])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["None 2 False -9", "True True 0", "[]"], done.stdout + done.stderr


def test_a_process_that_ignores_the_request_is_ended_all_the_same() -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        workers = Workers(identity(process), None)
        began = time.monotonic()
        assert workers.end_leftovers(term_s=0.3)
        assert time.monotonic() - began < 30
        wait_for(lambda: process.poll() is not None)


def test_a_commands_own_words_are_cut() -> None:
    with subprocess.Popen(["sleep", "60", *["1"] * 100]) as process:
        wait_for(lambda: identity(process).command().startswith("sleep"))
        assert len(identity(process).command()) == 80
        process.kill()
