"""A disk that fills during a save, a rank that dies in one: the checkpoint before survives, and training goes on from it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY, finish, journal_steps, lorawatch, processes_of, sql, start, the_run, wait_for

from lorawatch.run import checkpoints
from lorawatch.run.directory import RunDir

SAVING = ("--set", "train.checkpoint_every=10")


@pytest.fixture
def small_disk(lorawatch_home: Path) -> Iterator[Path]:
    """The home on a disk of 24 MB."""
    lorawatch_home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(lorawatch_home)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no right to mount")
    yield lorawatch_home
    subprocess.run(["umount", "-l", str(lorawatch_home)], check=False)


def fill(ballast: Path) -> None:
    """Somebody else takes what the disk has left, to the last byte."""
    for piece in (65536, 512):
        with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
            while True:
                file.write(b"\0" * piece)


def newest(run: RunDir) -> int:
    return max((checkpoints.step_of(f) for f in checkpoints.folders(run.checkpoints)), default=0)


def cpu_s(run: RunDir) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes_of(run))


@pytest.mark.slow
def test_a_disk_that_fills_during_saves_leaves_the_checkpoint_before(small_disk: Path) -> None:
    process = start(*TINY, *SAVING, "--set", "train.steps=1500")
    run = the_run(small_disk)
    wait_for(lambda: newest(run) >= 20)
    ballast = small_disk / "ballast"
    fill(ballast)
    before = newest(run)
    computed = cpu_s(run)
    wait_for(lambda: cpu_s(run) > computed + 2)  # dozens of steps; no journal can say so now
    assert process.poll() is None, "a full disk must not end the run"
    assert newest(run) == before, "nothing that is not whole took its place"
    assert checkpoints.read(run.checkpoints / checkpoints.folder_name(before)).step == before
    ballast.unlink()
    wait_for(lambda: newest(run) > before)
    out = finish(process)
    assert process.returncode == 0, out
    assert f"warning: no checkpoint of step {before + 10}: rank " in out
    assert f"{checkpoints.folder_name(before)} stays." in out
    assert checkpoints.read(run.checkpoints / "step-00001500").step == 1500
    assert not list(run.checkpoints.glob(".*")), "no half of a save is left"
    assert sql(small_disk, "SELECT count(*) > 0 FROM events WHERE kind = 'checkpoint_failed'") == [(True,)]
    assert sql(small_disk, "SELECT count(DISTINCT step) FROM v_steps") == [(1500,)]


DIES_IN_THE_SAVE_OF_STEP_20 = """
import os, sys
if os.environ.get('RANK') == '0' and os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':
    import threading, time
    def plant():
        while not hasattr(sys.modules.get('lorawatch.training.trainer'), 'train'): time.sleep(.01)
        from lorawatch.run import checkpoints
        place = checkpoints.{where}
        def die(*args, **kwargs):
            if any('step-00000020' in str(a) for a in args): os.kill(os.getpid(), 9)
            return place(*args, **kwargs)
        checkpoints.{where} = die
    threading.Thread(target=plant, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["stored", "put_in_place"])
def test_a_rank_that_dies_in_a_save_costs_one_interval(lorawatch_home: Path, tmp_path: Path, where: str) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DIES_IN_THE_SAVE_OF_STEP_20.format(where=where))
    args = (*TINY, *SAVING, "--set", "train.steps=40", "--set", "launch.max_restarts=1")
    result = lorawatch(*args, env={"PYTHONPATH": str(hook)})
    assert result.returncode == 0, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    assert "training goes on after step 10, from step-00000010" in result.stdout
    assert [s["step"] for s in journal_steps(run) if s["attempt"] == 1] == list(range(11, 41))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000030", "step-00000040"]
    assert all(checkpoints.read(p) for p in run.checkpoints.iterdir())
