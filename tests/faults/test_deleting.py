"""A deletion takes a run's rows and its directory in one moment, whatever fails, is killed or comes between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import lorawatch, sql
from history import end, make_run, step, write

from lorawatch.errors import HistoryError, RunNotFound
from lorawatch.run.directory import RunDir
from lorawatch.storage.edit import RUN_TABLES, delete_run
from lorawatch.storage.ingest import finish_run, ingest_run

# Deletes a run with a word of the caller's in the place where its directory is moved.
KILLED = """
import os, sys
from pathlib import Path
from lorawatch.storage.edit import delete_run
real = Path.rename
def rename(self, target):
    if self.name == sys.argv[1]:
        {words}
    return real(self, target)
Path.rename = rename
delete_run(sys.argv[1])
"""


@pytest.fixture
def run(lorawatch_home: Path) -> RunDir:
    """An ended run that is wholly in the history."""
    made = make_run(ranks=1)
    write(made.rank_journal(0), *(step(n) for n in range(1, 11)))
    end(made)
    finish_run(made)
    return made


def rows(home: Path) -> int:
    return sum(int(sql(home, f"SELECT count(*) FROM {table}")[0][0]) for table in RUN_TABLES)


def test_a_directory_that_cannot_be_moved_keeps_its_rows(
    run: RunDir, lorawatch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(lorawatch_home)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(13, os.strerror(13), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(HistoryError, match="cannot be removed: Permission denied"):
            delete_run(run.run_id)
    assert rows(lorawatch_home) == before > 10
    assert run.info().run_id == run.run_id
    delete_run(run.run_id)
    assert rows(lorawatch_home) == 0 and not run.root.exists()


@pytest.mark.parametrize("words", ["os._exit(9)", "real(self, target); os._exit(9)"], ids=["before", "behind"])
def test_a_deletion_that_is_killed_leaves_a_run_that_is_listed_and_can_be_deleted(
    run: RunDir, lorawatch_home: Path, words: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED.format(words=words), run.run_id], check=False, timeout=60)
    assert killed.returncode == 9
    assert run.run_id in lorawatch("runs").stdout
    delete_run(run.run_id)
    assert rows(lorawatch_home) == 0 and not run.root.exists()
    assert not list(lorawatch_home.glob(".*.deleted-*"))


def test_lines_that_are_brought_in_while_a_run_is_deleted_do_not_come_back(
    run: RunDir, lorawatch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run.rank_journal(0), *(step(n) for n in range(11, 21)))
    real, said = Path.rename, []

    def bring_in() -> None:
        try:
            ingest_run(run)
        except RunNotFound as error:
            said.append(error.message)

    other = threading.Thread(target=bring_in)

    def rename(self: Path, target: Path) -> Path:
        if self == run.root:
            other.start()
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    delete_run(run.run_id)
    other.join(10)
    assert said == [f"run {run.run_id} is gone"]
    assert rows(lorawatch_home) == 0
