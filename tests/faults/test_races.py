"""Commands at the same moment and in any order, kill after kill: short forms of `races.py`, `machine.py` and `kills.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest
from herd import Command
from history import end, make_run, step, write
from kills import kill_often
from machine import run_machine
from races import race
from soundness import bad_files, bad_history, bad_owners, bad_words, left_processes

from lorawatch.run.directory import RunDir
from lorawatch.run.records import Event
from lorawatch.storage.ingest import finish_run


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes that a failure leaves are pytest's to clean."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def run(lorawatch_home: Path) -> RunDir:
    """An ended run, of which nothing is wrong."""
    made = make_run(ranks=1)
    write(made.rank_journal(0), *(step(n) for n in range(1, 11)))
    write(made.events_journal, *(Event(at=float(n), kind=kind) for n, kind in enumerate(("started", "ended"))))
    end(made)
    finish_run(made)
    assert not bad_history(lorawatch_home, known=[made.run_id]) + bad_files(made) + bad_owners(made)
    return made


def test_a_history_that_is_not_what_the_journals_say_is_seen(run: RunDir, lorawatch_home: Path) -> None:
    with duckdb.connect(str(lorawatch_home / "history.duckdb")) as connection:
        connection.execute("DELETE FROM steps WHERE step = 3")
        connection.execute("INSERT INTO steps (run_id, attempt, rank, step) VALUES (?, 0, 0, 4)", [run.run_id])
        connection.execute("UPDATE runs SET state = 'running'")
    found = "\n".join(bad_history(lorawatch_home, known=[run.run_id]))
    assert "1 of 10 lines are not in the history: [((0, 0, 3), 1)]; 1 rows are too many: [((0, 0, 4), 1)]" in found
    assert "1 are there more than once" in found
    assert "the history says [('running'" in found
    shutil.rmtree(run.root)
    assert "steps has 10 rows of it" in "\n".join(bad_history(lorawatch_home, known=[run.run_id]))


def test_files_and_recorders_that_cannot_be_are_seen(run: RunDir) -> None:
    write(run.events_journal, *(Event(at=float(n), kind="adopted") for n in range(2)))
    assert bad_owners(run) and not bad_owners(run, orphaned=2)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"cut")
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    run.exit_record(0, 0).write_bytes(b"{")
    found = bad_files(run)
    assert len(found) == 3, found


def test_words_and_processes_that_should_not_be_are_seen(lorawatch_home: Path, tmp_path: Path) -> None:
    command = Command(("stop", "last"), tmp_path / "0", 0)
    assert "does not end" in bad_words(command)[0]
    for code, err, wrong in (
        (1, "lorawatch: no\n  do this\n", 0), (0, "Traceback (most recent call last)", 1), (1, "", 1), (-6, "", 1),
        (1, "lorawatch: KeyError: 'x'\n  this is a defect in lorawatch; --debug shows where\n", 1),
        (3, "lorawatch: no\n", 1), (2, "lorawatch: no\nlorawatch: no\n", 1),
    ):  # fmt: skip
        (tmp_path / "0.status").write_text(str(code))
        (tmp_path / "0.err").write_text(err)
        assert len(bad_words(command)) == wrong, (code, err)
    env = {**os.environ, "LORAWATCH_HOME": str(lorawatch_home)}
    with subprocess.Popen(["sleep", "60"], env=env) as process:
        assert f"process {process.pid} is left" in left_processes(lorawatch_home, wait_s=0)[0]


@pytest.mark.slow
def test_commands_at_the_same_moment_leave_every_run_whole() -> None:
    tally = race(rounds=2, processes=12, seed=11, resumable_every=0)
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.outcomes.total() == 24
    assert tally.rows > 0


@pytest.mark.slow
def test_any_order_of_commands_and_kills_leads_to_an_end() -> None:
    found = run_machine(examples=2, steps=8, seed=3)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_a_run_takes_kill_after_kill() -> None:
    count = kill_often(kills=6, minutes=1, seed=4, recipes=0)
    assert not count.problems, "\n".join(count.problems)
    assert count.kills.total() >= 6
