"""What the command line asks: lists, one run, a copy."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from history import a_whole_run, make_run

from lorawatch.errors import HistoryError, RunNotFound, UsageError
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import duckdb
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import find_run, list_runs, run_events, run_figures
from lorawatch.storage.snapshot import snapshot
from lorawatch.storage.sql import run_select
from lorawatch.system import home


def test_without_a_history_there_is_no_run() -> None:
    assert list_runs() == []
    assert run_figures("x") is None
    assert find_run("last") is None
    assert not home.history_file().exists(), "asking makes nothing"
    with pytest.raises(HistoryError, match="no history"):
        run_select("SELECT 1")


def test_runs_are_listed_latest_first_and_filtered() -> None:
    one, two = a_whole_run("one"), a_whole_run("two", state="failed")
    finish_run(one)
    finish_run(two)
    live = make_run("live")
    ingest_run(live)
    assert [r["name"] for r in list_runs()] == ["live", "two", "one"]
    assert [r["name"] for r in list_runs(limit=1)] == ["live"]
    assert [r["name"] for r in list_runs(state="failed")] == ["two"]
    assert [r["name"] for r in list_runs(name="one", tag="a", limit=None)] == ["one"]
    assert list_runs(tag="b") == []
    row = list_runs(name="one")[0]
    assert (row["gpu_count"], row["world_size"], row["duration_s"], row["steps"]) == (2, 2, 60.0, 10)
    assert list_runs(name="live")[0]["tok_s"] is None


def test_one_run_is_one_plain_row() -> None:
    run = a_whole_run()
    finish_run(run)
    row = run_figures(run.run_id)
    assert row is not None
    assert (row["name"], row["sku"], row["versions"]) == ("whole", "NVIDIA H100 80GB HBM3", "torch 2.13")
    assert row["ended_at_s"] - row["started_at_s"] == 60
    assert row["energy_all_gpus_j"] > row["energy_j"] > 0
    json.dumps(row)
    events = run_events(run.run_id, 2)
    assert [e["kind"] for e in events] == ["phase", "ended"]


def test_a_run_is_found_by_what_people_type() -> None:
    one, two = make_run("nightly"), make_run("nightly")
    ingest_run(one)
    ingest_run(two)
    assert find_run("last") == two.run_id
    assert find_run(one.run_id) == one.run_id
    assert find_run("nightly") == two.run_id
    assert find_run("nothing!") is None
    with pytest.raises(RunNotFound, match="fits 2"):
        find_run(one.run_id[:3])


@pytest.fixture
def history() -> Path:
    finish_run(a_whole_run())
    return home.history_file()


def test_a_snapshot_is_a_whole_history_that_others_can_open(history: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.duckdb"
    umask = os.umask(0)
    try:
        snapshot(target)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600, "it has commands and names of machines"
    with duckdb.connect(str(target), read_only=True) as copy:
        assert copy.execute("SELECT count(*) FROM v_steps").fetchone() == (40,)
        assert copy.execute(
            "SELECT count(*) FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
        ).fetchone() == (0,)
    with pytest.raises(UsageError, match="there already"):
        snapshot(target)
    finish_run(a_whole_run())
    snapshot(target, force=True)
    with duckdb.connect(str(target), read_only=True) as copy:
        assert copy.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    with pytest.raises(UsageError, match="itself"):
        snapshot(history, force=True)
    with pytest.raises(UsageError, match="no folder"):
        snapshot(tmp_path / "nowhere" / "x.duckdb")
    assert list(tmp_path.glob(".*")) == []


def test_asking_loads_no_more_than_it_needs(history: Path) -> None:
    code = (
        "import sys; from lorawatch.storage.queries import list_runs; assert list_runs();"
        "heavy = {'duckdb', 'pandas', 'numpy', 'pyarrow', 'torch', 'yaml'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_moment_in_the_same_process_waits_for_the_other(history: Path) -> None:
    with writing():
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(list_runs()))
        thread.start()
        time.sleep(0.2)
        assert seen == []
    thread.join()
    assert len(seen) == 1
