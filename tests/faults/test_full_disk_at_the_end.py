"""A disk that is full when a run ends: what is missing is said, the end is written, nothing is claimed that is not there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import (
    TINY,
    exit_records,
    finish,
    journal_steps,
    lorawatch,
    processes_of,
    sql,
    start,
    the_run,
    wait_for,
    wait_for_step,
)

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Step

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py"))]


@pytest.fixture
def small_disk(lorawatch_home: Path) -> Iterator[Path]:
    """The home on a disk of 24 MB."""
    lorawatch_home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(lorawatch_home)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no right to mount")
    yield lorawatch_home
    subprocess.run(["umount", "-l", str(lorawatch_home)], check=False)


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setenv("LIGHT_MADE", str(folder))
    return folder


def fill(ballast: Path) -> None:
    """Somebody else takes what the disk has left, to the last byte."""
    for piece in (65536, 512):
        with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
            while True:
                file.write(b"\0" * piece)


def all_sleep(run: RunDir) -> bool:
    """Whether the ranks have nothing to do: training is over, and they wait."""
    before = cpu_s(run)
    time.sleep(1.5)
    return cpu_s(run) - before < 0.5


def cpu_s(run: RunDir) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes_of(run))


def made_by(folder: Path, rank: int) -> int:
    return (folder / f"attempt_0-rank-{rank}").stat().st_size


def steps_in(run: RunDir, rank: int) -> int:
    """Whole step lines; a full disk may leave one torn."""
    return sum(isinstance(line, Step) for line in JournalTail(run.rank_journal(rank)).records())


def a_run_that_ends_on_a_full_disk(home: Path, made: Path, wait_s: str) -> tuple[RunDir, subprocess.Popen[str]]:
    process = start("--record", "--", *LIGHT, "launch", "2", "300", "0.01", env={"LORAWATCH_DISK_WAIT_S": wait_s})
    run = the_run(home)
    wait_for(lambda: len(journal_steps(run)) > 20)
    fill(home / "ballast")
    wait_for(lambda: all(made_by(made, rank) == 300 for rank in (0, 1)))
    return run, process


def test_lines_that_were_never_written_are_counted_and_named(small_disk: Path, made: Path) -> None:
    run, process = a_run_that_ends_on_a_full_disk(small_disk, made, "1")
    wait_for(lambda: run.state().state == "completed", 60)
    (small_disk / "ballast").unlink()
    out = finish(process)
    assert process.returncode == 0, out
    kept = {rank: steps_in(run, rank) for rank in (0, 1)}
    assert all(0 < n < 300 for n in kept.values())
    lost = {rank: json.loads(run.rank_journal(rank).read_text().splitlines()[-1]) for rank in (0, 1)}
    for rank, line in lost.items():
        assert (line["t"], line["steps"], line["last_step"]) == ("lines_lost", 300 - kept[rank], 300)
    words = f"{600 - sum(kept.values()):,} lines of its ranks are not recorded: the disk took no more"
    shown = lorawatch("show", run.run_id).stdout
    for text in (out, shown, run.state().message or ""):
        assert words in " ".join(text.split())
    assert "final loss" not in shown, "the last step is not there"
    assert sql(small_disk, "SELECT count(*) FROM steps") == [(sum(kept.values()),)]


def test_a_disk_that_gets_space_in_time_costs_nothing(small_disk: Path, made: Path) -> None:
    run, process = a_run_that_ends_on_a_full_disk(small_disk, made, "30")
    assert process.poll() is None, "it waits for space"
    (small_disk / "ballast").unlink()
    out = finish(process)
    assert process.returncode == 0, out
    assert [len(journal_steps(run, rank)) for rank in (0, 1)] == [300, 300]
    assert run.state().message is None
    assert sql(small_disk, "SELECT count(*), count(DISTINCT (rank, step)) FROM steps") == [(600, 600)]


def test_the_end_of_a_run_is_written_where_no_byte_is_left(small_disk: Path, made: Path) -> None:
    """Also the room for it was taken at the start."""
    process = start("--record", "--", "sh", "-c", f"sleep 2; while [ ! -e {made}/full ]; do sleep 0.1; done; exit 3")
    run = the_run(small_disk)
    wait_for(lambda: run.state().state == "running")
    fill(small_disk / "ballast")
    (made / "full").touch()
    wait_for(lambda: run.state().state == "failed", 30)
    assert run.state().failure == "nonzero_exit"
    (small_disk / "ballast").unlink()
    finish(process)
    assert process.returncode == 1
    assert "running" not in lorawatch("show", run.run_id).stdout
    assert sql(small_disk, "SELECT state, failure FROM runs") == [("failed", "nonzero_exit")]
    assert not list(run.root.glob(".*reserved*"))


@pytest.mark.slow
def test_an_adapter_waits_for_space_and_is_not_given_up_at_once(small_disk: Path) -> None:
    process = start(*TINY, "--set", "train.steps=200", env={"LORAWATCH_DISK_WAIT_S": "90"})
    run = the_run(small_disk)
    wait_for_step(run, 20)
    fill(small_disk / "ballast")
    wait_for(lambda: all_sleep(run), 90)
    assert process.poll() is None
    assert not run.adapter.exists()
    (small_disk / "ballast").unlink()
    out = finish(process)
    assert process.returncode == 0, out
    assert "warning: the adapter does not fit on the disk: waiting 90 s for space" in out
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 0
    assert sql(small_disk, "SELECT count(*) FROM steps") == [(400,)]


@pytest.mark.slow
def test_an_adapter_that_never_fits_fails_the_run_and_says_so(small_disk: Path) -> None:
    process = start(*TINY, "--set", "train.steps=200", env={"LORAWATCH_DISK_WAIT_S": "1"})
    run = the_run(small_disk)
    wait_for_step(run, 20)
    fill(small_disk / "ballast")
    wait_for(lambda: run.state().state == "failed", 90)
    assert run.state().failure == "disk_full"
    records = [r for r in exit_records(run) if r]
    assert records[0].unwritten > 0 and records[0].steps_made == 200
    (small_disk / "ballast").unlink()
    out = finish(process)
    assert process.returncode == 1
    assert "lines of its ranks are not recorded" in out
    assert "rank 0 made 200 steps, of which" in out
    assert lorawatch("show", run.run_id).stdout.count("final loss") == 0
