"""The history under bad luck: held, newer, damaged, full, killed in the middle. Nothing is lost, nothing comes twice."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from history import a_whole_run, make_run, many_lines, rows, step, write

from lorawatch.errors import HistoryBusy, HistoryError, HistoryTooNew, JournalUnreadable
from lorawatch.run.directory import RunDir
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import duckdb
from lorawatch.storage.files import set_aside, wal
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import list_runs
from lorawatch.system import home as paths

INGEST_IN_A_LOOP = """
import sys, time
from pathlib import Path
from lorawatch.errors import HistoryError
from lorawatch.run.directory import RunDir
from lorawatch.storage.ingest import ingest_run
run = RunDir(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    try:
        ingest_run(run)
    except HistoryError as error:
        print(error, flush=True)
    time.sleep(0.002)
"""


def spawn(code: str, *args: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline(), "it has started"
    return process


@contextlib.contextmanager
def held(mode: str = "False") -> Iterator[subprocess.Popen[str]]:
    """The history, open in another real process."""
    process = spawn(
        f"import duckdb, time; c = duckdb.connect({str(paths.history_file())!r}, read_only={mode}); "
        "print('held', flush=True); time.sleep(60)"
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def steps_in() -> tuple[int, int]:
    return rows("SELECT count(*), count(DISTINCT (run_id, attempt, rank, step)) FROM steps")[0]  # type: ignore[return-value]


@pytest.mark.parametrize("read_only", ["False", "True"])
def test_a_held_history_is_busy_and_takes_everything_later(read_only: str) -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    with held(read_only) as holder:
        write(run.rank_journal(0), step(2))
        began = time.monotonic()
        with pytest.raises(HistoryBusy, match=str(holder.pid)) as caught:
            ingest_run(run, deadline_s=0.5)
        assert 0.4 < time.monotonic() - began < 30
        assert "journals" in (caught.value.hint or "")
        if read_only == "False":
            with pytest.raises(HistoryBusy):
                list_runs()
        else:
            assert len(list_runs()) == 1, "readers do not keep readers out"
    assert ingest_run(run).rows == 1
    assert steps_in() == (2, 2)


def test_a_history_that_is_let_go_within_the_deadline_is_no_news() -> None:
    run = make_run()
    ingest_run(run)
    write(run.rank_journal(0), step(1))
    with held() as holder:
        subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {holder.pid}"])
        report = ingest_run(run, deadline_s=5)
    assert report.rows == 1
    assert 0.3 < report.seconds < 5


def test_another_lorawatch_at_the_lock_file_is_waited_for() -> None:
    run = make_run()
    ingest_run(run)
    lock = str(paths.history_file()) + ".lock"
    process = spawn(
        f"import fcntl, time; f = open({lock!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    try:
        with pytest.raises(HistoryBusy, match="another lorawatch"):
            ingest_run(run, deadline_s=0.2)
    finally:
        process.kill()
        process.wait()
    ingest_run(run)


def checksum(block: bytes) -> int:
    """DuckDB's checksum of a header."""
    result = 5381
    for at in range(0, len(block), 8):
        result ^= int.from_bytes(block[at : at + 8], "little") * 0xBF58476D1CE4E5B9 % 2**64
    return result


def test_a_history_of_a_newer_duckdb_is_refused_and_left_alone() -> None:
    run = make_run()
    ingest_run(run)
    path = paths.history_file()
    content = bytearray(path.read_bytes())
    content[12:20] = (250).to_bytes(8, "little")  # the storage version
    content[:8] = checksum(bytes(content[8:4096])).to_bytes(8, "little")
    path.write_bytes(content)
    for refused in (lambda: ingest_run(run), list_runs):
        with pytest.raises(HistoryTooNew, match="newer DuckDB"):
            refused()
    assert path.read_bytes() == content
    assert list(path.parent.glob("*.damaged-*")) == []


def test_what_is_set_aside_never_covers_another(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        (tmp_path / "x").write_text("x")
        names.add(set_aside(tmp_path / "x", "test").name)
    assert len(names) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_history_that_may_not_be_written_is_not_taken_for_damaged() -> None:
    run = make_run()
    ingest_run(run)
    path = paths.history_file()
    path.chmod(0o000)
    with pytest.raises(HistoryError, match="may not"):
        ingest_run(run)
    path.chmod(0o600)
    assert list(path.parent.glob("*.damaged-*")) == []


def test_a_folder_in_the_lock_files_place_is_waited_for_and_loses_nothing() -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    lock = paths.history_file().with_name("history.duckdb.lock")
    lock.unlink()
    lock.mkdir()
    write(run.rank_journal(0), *(step(n) for n in range(2, 40)))
    began = time.monotonic()
    with pytest.raises(HistoryBusy, match=re.escape(str(lock))) as caught:
        ingest_run(run, deadline_s=0.5)
    assert time.monotonic() - began > 0.4, "it may go away"
    assert "remove the folder" in (caught.value.hint or "")
    remover = subprocess.Popen(["sh", "-c", f"sleep 0.5; rmdir {lock}"])
    assert ingest_run(run, deadline_s=20).rows == 38
    remover.wait()
    assert steps_in() == (39, 39)


def test_a_journal_that_cannot_be_read_keeps_no_other_out() -> None:
    run = a_whole_run()
    kept = run.rank_journal(1).read_bytes()
    run.rank_journal(1).unlink()
    run.rank_journal(1).mkdir()
    os.mkfifo(run.rank_journal(2))
    with pytest.raises(JournalUnreadable, match=r"rank-[12]\.jsonl cannot be read"):
        finish_run(run)
    assert steps_in() == (40, 40)
    assert (paths.open_runs_folder() / run.run_id).exists(), "it is asked for again"
    run.rank_journal(1).rmdir()
    run.rank_journal(2).unlink()
    run.rank_journal(1).write_bytes(kept)
    finish_run(run)
    assert steps_in() == (80, 80)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on a disk of 6 MB."""
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(home)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    monkeypatch.setenv("LORAWATCH_HOME", str(home))
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk: Path) -> None:
    run = make_run()
    run.rank_journal(0).write_bytes(b"".join(many_lines(5000)))
    ingest_run(run)
    run.rank_journal(1).write_bytes(b"".join(line.replace(b'"rank":0', b'"rank":1') for line in many_lines(4000)))
    filler = fill(small_disk)
    with pytest.raises(HistoryError, match="no space left"):
        ingest_run(run)
    filler.unlink()
    assert steps_in()[0] in (5000, 9000)
    ingest_run(run)
    assert steps_in() == (9000, 9000)


def test_a_disk_too_full_to_make_a_history_leaves_none(small_disk: Path) -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    filler = fill(small_disk)
    with pytest.raises(HistoryError, match="no space left"):
        ingest_run(run)
    assert not paths.history_file().exists()
    filler.unlink()
    ingest_run(run)
    assert steps_in() == (1, 1)
    assert list(small_disk.glob(".history*")) == []


def test_kill_9_at_any_moment_leaves_every_line_once() -> None:
    run = make_run()
    lines = many_lines(6000)
    source = random.Random(7)
    done = 0
    with open(run.rank_journal(0), "ab", buffering=0) as journal:
        for _ in range(15):
            process = spawn(INGEST_IN_A_LOOP, str(run.root))
            until = time.monotonic() + source.uniform(0.05, 0.4)
            while time.monotonic() < until and done < len(lines) - 100:
                count = source.randrange(1, 60)
                data = b"".join(lines[done : done + count])
                cut = source.randrange(1, len(data))
                journal.write(data[:cut])  # torn for a moment
                time.sleep(0.004)
                journal.write(data[cut:])
                done += count
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert done > 500
    ingest_run(run)
    assert steps_in() == (done, done)
    assert rows("SELECT min(step), max(step) FROM steps") == [(1, done)]
    assert rows("SELECT lines, broken_lines FROM journal_offsets") == [(done, 0)]


def test_kill_9_while_the_history_is_made_leaves_it_whole_or_absent() -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    source = random.Random(5)
    for _ in range(12):
        process = spawn(INGEST_IN_A_LOOP, str(run.root))
        time.sleep(source.uniform(0.0, 0.12))
        process.kill()
        process.wait()
        if source.random() < 0.5 and paths.history_file().exists():
            for path in (paths.history_file(), wal(paths.history_file())):
                path.unlink(missing_ok=True)
    ingest_run(run)
    assert steps_in() == (1, 1)
    assert list(paths.home().glob("*.damaged-*")) == []
    assert list(paths.home().glob(".history*")) == []


def test_two_processes_that_ingest_the_same_run_bring_each_line_once() -> None:
    runs: list[RunDir] = [make_run("one"), make_run("two")]
    lines = many_lines(3000)
    workers = [spawn(INGEST_IN_A_LOOP, str(run.root)) for run in (runs[0], runs[0], runs[1])]
    try:
        for begin in range(0, len(lines), 100):
            for run in runs:
                with open(run.rank_journal(0), "ab") as journal:
                    journal.write(b"".join(lines[begin : begin + 100]))
            time.sleep(0.01)
        deadline = time.monotonic() + 20
        while steps_in()[0] < 6000 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert steps_in() == (6000, 6000)


def test_a_foreign_database_in_the_place_keeps_its_tables() -> None:
    path = paths.history_file()
    path.parent.mkdir(parents=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 42 AS x")
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    assert rows("SELECT x FROM mine") == [(42,)]
    assert steps_in() == (1, 1)


def test_an_error_in_a_write_leaves_the_history_usable() -> None:
    run = make_run()
    ingest_run(run)
    with pytest.raises(ZeroDivisionError), writing() as connection:
        connection.execute("BEGIN")
        connection.execute("DELETE FROM runs")
        raise ZeroDivisionError
    assert len(list_runs()) == 1
