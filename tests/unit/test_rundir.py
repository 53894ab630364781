"""Run directories: ids, atomic files, and finding a run by what a person types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorawatch.errors import RunNotFound
from lorawatch.run.directory import RunDir, RunInfo, RunState, new_run_id
from lorawatch.system.processes import ProcessId


def make(name: str = "x", at: float = 1_800_000_000.0) -> RunDir:
    return RunDir.create(RunInfo(run_id="", name=name, created_at=at, host="h", user="u", world_size=1))


def test_ids_sort_by_time_and_never_collide() -> None:
    assert new_run_id(1_800_000_000.0) < new_run_id(1_800_000_000.1) < new_run_id(1_900_000_000.0)
    ids = [make().run_id for _ in range(5)]
    assert len(set(ids)) == 5
    assert ids == sorted(ids)


def test_a_run_is_found_by_id_beginning_end_name_or_last() -> None:
    first, second = make("alpha", 1_700_000_000.0), make("beta", 1_800_000_000.0)
    assert RunDir.find(first.run_id).root == first.root
    assert RunDir.find(second.run_id[:6]).root == second.root
    assert RunDir.find("last").root == second.root
    assert RunDir.find("alpha").root == first.root
    with pytest.raises(RunNotFound, match="no run 'gamma'"):
        RunDir.find("gamma")


def test_a_beginning_that_fits_several_lists_them() -> None:
    runs = [make(at=1_800_000_000.0), make(at=1_800_000_000.0)]
    with pytest.raises(RunNotFound, match="fits 2 runs") as caught:
        RunDir.find(runs[0].run_id[:4])
    assert runs[1].run_id in str(caught.value)


def test_files_are_private_and_replaced_whole() -> None:
    run = make()
    assert (run.root / "run.json").stat().st_mode & 0o777 == 0o600
    assert run.root.stat().st_mode & 0o777 == 0o700
    run.write_state(RunState(state="running", step=3))
    assert run.state().step == 3
    assert [p.name for p in run.root.iterdir() if p.name.startswith(".")] == []


def test_a_process_is_known_by_more_than_its_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = ProcessId.of(child.pid)
    assert identity is not None
    assert identity.alive()
    assert not ProcessId(identity.pid, identity.started + 1, identity.boot_id).alive()
    assert not ProcessId(identity.pid, identity.started, "another boot").alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped: a zombie
    assert not identity.alive()
    child.wait()


def test_the_home_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    monkeypatch.setenv("LORAWATCH_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(RunNotFound):
        RunDir.find(run.run_id)
