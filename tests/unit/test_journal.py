"""Journals: nothing written is lost, nothing torn is read."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lorawatch.run.journal import JournalTail, JournalWriter
from lorawatch.run.records import Event, LinesLost, Step


def step(n: int) -> Step:
    return Step(attempt=0, rank=0, step=n, ended_at=float(n), duration_s=0.5, tokens=100)


def write(path: Path, *records: Step) -> None:
    writer = JournalWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


def test_a_file_that_was_cut_is_read_on_from_its_new_end(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    writer = JournalWriter(path)
    for n in range(10):
        writer.append(step(n))
    writer.close()
    tail = JournalTail(path)
    assert len(list(tail.records())) == 10
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert list(tail.records()) == []
    writer = JournalWriter(path)
    writer.append(step(10))
    writer.close()
    assert [r.step for r in tail.records() if isinstance(r, Step)] == [10]


def test_a_file_that_was_cut_and_written_on_is_noticed_and_read_on_at_a_lines_beginning(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path, *(step(n) for n in range(100)))
    tail = JournalTail(path)
    assert len(list(tail.records())) == 100
    os.truncate(path, path.stat().st_size // 2 + 7)
    write(path, *(step(1000 + n) for n in range(100)))
    assert path.stat().st_size > tail.offset
    read = [r.step for r in tail.records() if isinstance(r, Step)]
    assert tail.cut == 1
    assert read == list(range(read[0], 1100)), "whole lines, and all that are behind"
    assert tail.broken == 0
    write(path, step(2000))
    assert [r.step for r in tail.records() if isinstance(r, Step)] == [2000]
    assert tail.cut == 1, "it is said once"


def test_another_file_in_its_place_is_noticed_and_one_that_grows_is_not(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    tail = JournalTail(path)
    for n in range(50):
        write(path, step(n))
        assert len(list(tail.records())) == 1
    assert tail.cut == 0
    path.unlink()
    assert list(tail.records()) == []
    write(path, *(step(n) for n in range(500, 600)))
    list(tail.records())
    assert tail.cut == 1
    again = JournalTail(path, tail.offset, tail.mark)
    assert (again.read(), again.cut) == (b"", 0), "where another reader left off"
    other = JournalTail(path, tail.offset, (tail.mark or 0) ^ 1)
    other.read()
    assert other.cut == 1


def test_what_cannot_be_read_is_said_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.mkdir()
    tail = JournalTail(path)
    assert (tail.read(), tail.error) == (b"", "Is a directory")
    path.rmdir()
    os.mkfifo(path)
    assert tail.read() == b"", "a pipe without a writer is not waited for"
    path.unlink()
    write(path, step(1))
    assert len(list(tail.records())) == 1
    assert tail.error is None


def test_what_is_written_is_read_once_in_order(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j.jsonl")
    tail = JournalTail(tmp_path / "j.jsonl")
    for n in range(5):
        writer.append(step(n))
        if n == 2:
            writer.flush()
            assert [r.step for r in tail.records() if isinstance(r, Step)] == [0, 1, 2]
    writer.close()
    assert [r.step for r in tail.records() if isinstance(r, Step)] == [3, 4]
    assert list(tail.records()) == []


def test_a_torn_tail_waits_and_the_next_writer_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first = JournalWriter(path)
    first.append(step(1))
    first.close()
    with open(path, "ab") as file:
        file.write(b'{"t":"step","attempt":0,"ra')  # a writer that was killed here
    tail = JournalTail(path)
    assert len(list(tail.records())) == 1
    assert list(tail.records()) == []
    second = JournalWriter(path)
    second.append(step(2))
    second.close()
    assert [r.step for r in tail.records() if isinstance(r, Step)] == [2]
    assert tail.broken == 1


def test_a_missing_reading_is_absent_from_the_line(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j.jsonl")
    writer.append(step(1))
    writer.close()
    assert b"loss" not in (tmp_path / "j.jsonl").read_bytes()
    (record,) = JournalTail(tmp_path / "j.jsonl").records()
    assert isinstance(record, Step)
    assert record.loss is None


def test_lines_survive_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "later" / "j.jsonl"
    writer = JournalWriter(path)
    writer.append(step(1))
    assert not writer.flush()
    assert writer.error
    assert "later" in writer.error
    path.parent.mkdir()
    writer.append(step(2))
    assert writer.flush()
    assert writer.error is None
    assert [r.step for r in JournalTail(path).records() if isinstance(r, Step)] == [1, 2]


def test_past_the_limit_the_newest_are_dropped_counted_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "later" / "j.jsonl"
    writer = JournalWriter(path, rank=3, keep=10)
    for n in range(15):
        writer.append(step(n))
    assert writer.lost == 5
    path.parent.mkdir()
    writer.flush()
    records = list(JournalTail(path).records())
    assert [r.step for r in records if isinstance(r, Step)] == list(range(10))
    (lost,) = [r for r in records if isinstance(r, LinesLost)]
    assert (lost.lines, lost.rank) == (5, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        path = disk / "j.jsonl"
        writer = JournalWriter(path)
        for n in range(2000):
            writer.append(step(n))
        assert not writer.flush()
        assert writer.error
        assert "No space" in writer.error
        # what is on disk is whole lines plus at most one torn one; now somebody makes room
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert writer.flush()
        tail = JournalTail(path)
        steps = [r.step for r in tail.records() if isinstance(r, Step)]
        assert steps == list(range(2000))
        assert tail.broken == 0
        writer.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_long_line_is_read_whole(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j.jsonl")
    writer.append(Event(at=1.0, kind="x", message="m" * 10_000))
    writer.close()
    (event,) = JournalTail(tmp_path / "j.jsonl").records(limit=100)
    assert isinstance(event, Event)
    assert len(event.message) == 10_000


def test_a_journal_that_was_deleted_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorawatch.run.journal._LOOK_EVERY_S", 0.0)
    path = tmp_path / "journal" / "j.jsonl"
    path.parent.mkdir()
    writer, tail = JournalWriter(path), JournalTail(path)
    for n in range(3):
        writer.append(step(n))
    writer.flush()
    assert len(list(tail.records())) == 3
    path.unlink()
    assert list(tail.records()) == []
    writer.append(step(3))
    assert writer.flush()
    assert [r.step for r in tail.records() if isinstance(r, Step)] == [3]
    assert [r.step for r in JournalTail(path).records() if isinstance(r, Step)] == [0, 1, 2, 3]
    shutil.rmtree(path.parent)
    writer.append(step(4))
    assert writer.flush(), "the lines are in the deleted file, and wait there"
    path.parent.mkdir()
    writer.append(step(5))
    writer.close()
    assert [r.step for r in JournalTail(path).records() if isinstance(r, Step)] == [0, 1, 2, 3, 4, 5]
    assert list(path.parent.iterdir()) == [path]


def test_lines_that_the_disk_never_took_are_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path / "j.jsonl", rank=3, keep=4)
    writer.reserve()
    writer.append(step(1))
    writer.flush()
    real = os.write
    full = True

    def write(descriptor: int, data: bytes) -> int:
        if full and len(data) > 50 and b"lines_lost" not in bytes(data):
            return real(descriptor, data[:50]) if len(data) > 400 else raise_full()
        return real(descriptor, data)

    def raise_full() -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    for n in range(2, 8):  # two more than may wait
        writer.append(step(n))
    assert not writer.flush()
    assert writer.close(0.3) == 6
    *steps, last = JournalTail(tmp_path / "j.jsonl").records()
    assert [r.step for r in steps if isinstance(r, Step)] == [1]
    assert isinstance(last, LinesLost)
    assert (last.lines, last.steps, last.last_step, last.rank) == (6, 6, 7, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["j.jsonl"], "the room is given back"
