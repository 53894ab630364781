"""Somebody asks a question on a training host: whatever it is, it takes a bounded part of the memory, and of the time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import command, lorawatch, wait_for
from history import a_whole_run

from lorawatch.cli import bounded
from lorawatch.cli.bounded import run_bounded
from lorawatch.errors import HistoryDamaged, HistoryError, UsageError
from lorawatch.storage.ingest import finish_run

MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stderr, peak / 1024]))
"""


@pytest.mark.parametrize(
    ("query", "form", "timeout_s", "most_mb"),
    [
        ("SELECT a.*, b.* FROM steps a, steps b, range(1000)", "csv", 3, 400),
        ("SELECT a.*, b.* FROM steps a, steps b, range(1000)", "table", 3, 400),
        ("SELECT a.*, b.* FROM steps a, steps b, range(1000)", "json", 3, 400),
        ("SELECT list(s) FROM steps AS s, range(20000)", "json", 12, 2500),
        ("SELECT string_agg(range::VARCHAR, ',') FROM range(100000000)", "table", 12, 2500),
        ("SELECT [{'b': x, 'c': repeat('y', 1000)} FOR x IN range(1000000)]", "csv", 12, 2500),
        ("WITH RECURSIVE t AS (SELECT 1 AS n, 'x' AS s UNION ALL SELECT n + 1, s || s FROM t) SELECT * FROM t", "csv", 12, 2500),
        ("SELECT repeat('x', 300000000) FROM range(10)", "table", 12, 2500),
    ],
)  # fmt: skip
def test_a_question_takes_no_more_than_its_part_of_the_memory(
    query: str, form: str, timeout_s: int, most_mb: float
) -> None:
    finish_run(a_whole_run())
    args = command("sql", query, "--format", form, "--timeout", str(timeout_s))
    out = subprocess.run([sys.executable, "-c", MEASURED, *args], capture_output=True, text=True, check=True).stdout
    code, said, peak_mb = json.loads(out)
    assert code == 1
    assert "memory" in said or f"did not end within {timeout_s} s" in said
    assert "Traceback" not in said
    assert "defect" not in said
    assert peak_mb < most_mb


def test_an_export_that_fails_or_is_killed_leaves_the_file_as_it_was(lorawatch_home: Path, tmp_path: Path) -> None:
    finish_run(a_whole_run())
    target = tmp_path / "x.csv"
    target.write_text("precious")
    done = lorawatch("sql", "FROM range(1000000000)", "--format", "csv", "-o", str(target), "--timeout", "1")
    assert (done.returncode, target.read_text()) == (1, "precious")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(command("sql", "FROM range(1000000000)", "--format", "csv", "-o", str(target)))
        try:
            wait_for(lambda: list(tmp_path.glob(".lorawatch-*/answer")), timeout=30)
            process.send_signal(number)
            assert process.wait(20) == code
        finally:
            process.kill()
    assert target.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert list(lorawatch_home.glob(".spill*")) == []


def bounds(work: Callable[[], None], timeout_s: float = 20.0, folder: Path = Path("/nowhere")) -> None:
    run_bounded(lambda on_answered: work(), timeout_s, [folder])


def test_a_process_that_crashes_is_an_error_and_what_it_left_is_removed(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / f".lorawatch-{os.getpid()}-x").mkdir()
        (tmp_path / f".spill-{os.getpid()}-x").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(HistoryError, match="SIGKILL") as caught:
        bounds(work, folder=tmp_path)
    assert "memory" in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_be_interrupted_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_GRACE_S", 0.2)
    began = time.monotonic()
    with pytest.raises(HistoryError, match=r"did not end within 0\.3 s"):
        bounds(lambda: time.sleep(60), timeout_s=0.3)
    assert time.monotonic() - began < 50


def test_what_remains_after_the_query_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_GRACE_S", 0.2)

    def work(on_answered: Callable[[], None]) -> None:
        on_answered()
        time.sleep(1.5)

    run_bounded(work, 0.3, [])


def test_its_errors_are_those_of_the_work() -> None:
    def damaged() -> None:
        error = HistoryDamaged("m", hint="h", certain=False, file=(1, 2))
        error.answered = True
        raise error

    with pytest.raises(HistoryDamaged, match="m") as caught:
        bounds(damaged)
    error = caught.value
    assert (error.hint, error.certain, error.file, error.answered) == ("h", False, (1, 2), True)

    def usage() -> None:
        raise UsageError("u")

    with pytest.raises(UsageError, match="u"):
        bounds(usage)

    def too_much() -> None:
        "x" * (bounded.MEMORY_BYTES * 2)  # type: ignore[operator]

    with pytest.raises(HistoryError, match="memory"):
        bounds(too_much)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        bounds(lambda: print(1 // 0))


def test_a_pipe_that_closes_ends_the_question() -> None:
    finish_run(a_whole_run())
    done = subprocess.run(
        f"{' '.join(command('sql'))} 'FROM range(100000000)' --format csv | head -2",
        shell=True, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "range\n0\n"
    assert done.stderr == ""
