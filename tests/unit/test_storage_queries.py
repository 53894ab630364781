"""What the command line asks: lists, one run, a user's SELECT, a copy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from history import a_whole_run, make_run, rows

from lorawatch import paths
from lorawatch.errors import HistoryError, RunNotFound, UsageError
from lorawatch.storage import export, sql
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import duckdb
from lorawatch.storage.export import write_result
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.storage.queries import find_run, list_runs, run_events, run_figures
from lorawatch.storage.snapshot import snapshot
from lorawatch.storage.sql import run_select


def test_without_a_history_there_is_no_run() -> None:
    assert list_runs() == []
    assert run_figures("x") is None
    assert find_run("last") is None
    assert not paths.history_file().exists(), "asking makes nothing"
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
    return paths.history_file()


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM runs",
        "DROP TABLE runs",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO runs (run_id) VALUES ('x')",
        "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
        "SELECT 1; DROP TABLE runs",
        "COPY runs TO '/tmp/lorawatch-evil.csv'",
        "COPY (SELECT 1) TO '/tmp/lorawatch-evil.csv'",
        "ATTACH '/tmp/lorawatch-evil.db'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '/etc/passwd'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CHECKPOINT",
        "BEGIN",
        "EXPLAIN ANALYZE DELETE FROM runs",
        "",
        "-- nothing",
        "SELEC 1",
        "SELECT * FROM nowhere",
        "SELECT nothing FROM runs",
        "SELECT 'a'::INTEGER",
    ],
)
def test_a_query_that_may_not_or_cannot_run_is_refused_with_a_hint(query: str, history: Path) -> None:
    before = rows("SELECT count(*) FROM runs")
    with pytest.raises((UsageError, HistoryError)) as caught:
        run_select(query)
    assert caught.value.hint
    assert rows("SELECT count(*) FROM runs") == before
    assert not Path("/tmp/lorawatch-evil.csv").exists()
    assert not Path("/tmp/lorawatch-evil.db").exists()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1", "FROM runs", "VALUES (1)", "TABLE runs", "DESCRIBE steps", "SHOW TABLES", "SUMMARIZE runs",
        "WITH a AS (SELECT 1) SELECT * FROM a;", "SELECT 1 -- a comment", "EXPLAIN SELECT 1", "SELECT 1 AS a, 2 AS a",
        "SELECT [created_at] FROM runs", "SELECT 1 AS \"a \"\" b\"",
    ],
)  # fmt: skip
def test_whatever_reads_is_answered(query: str, history: Path) -> None:
    assert run_select(query).rows


def test_answers_keep_order_types_and_names(history: Path) -> None:
    found = run_select(
        "SELECT step AS a, step::VARCHAR AS a, ended_at, NULL AS n FROM v_steps ORDER BY step DESC", max_rows=2
    )
    assert found.columns == ["a", "a", "ended_at", "n"]
    assert found.cut
    assert [r[0] for r in found.rows] == [40, 39]
    assert str(found.rows[0][2]).startswith("2026-09-21 14:13:40")


def test_an_error_shows_the_users_own_line(history: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run_select("SELECT * FROM nowhere")
    line, caret = caught.value.message.splitlines()[-2:]
    assert line == "LINE 1: SELECT * FROM nowhere"
    assert line[caret.index("^") :].startswith("nowhere")


def test_a_query_without_end_is_ended(history: Path) -> None:
    began = time.monotonic()
    with pytest.raises(HistoryError, match=r"0\.5 s"):
        run_select(
            "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range + b.range = 7", timeout_s=0.5
        )
    assert time.monotonic() - began < 5
    assert threading.active_count() < 10


def test_a_query_that_wants_all_memory_is_ended(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MEMORY", "20MB")
    with pytest.raises(HistoryError, match="memory"):
        run_select("SELECT list(range) FROM range(30000000)", timeout_s=20)


def test_the_formats(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT 1.5 AS x, 'a,\x1b[31mb' AS y, NULL AS z, 'nan'::DOUBLE AS n, true AS t, [1, 2] AS l"
    write_result(query, "json")
    assert json.loads(capsys.readouterr().out) == [
        {"x": "1.5", "y": "a,\x1b[31mb", "z": None, "n": None, "t": True, "l": [1, 2]}
    ]
    write_result("SELECT 1 AS x WHERE false", "json")
    assert json.loads(capsys.readouterr().out) == []
    write_result(query, "csv")
    assert capsys.readouterr().out.splitlines() == ["x,y,z,n,t,l", '1.5,"a,\x1b[31mb",,nan,true,"[1,2]"']
    write_result(query, "table")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[0].split() == ["x", "y", "z", "n", "t", "l"]
    assert "(1 row)" in out
    write_result("FROM steps", "parquet", tmp_path / "steps.parquet")
    found = duckdb.connect().execute(f"SELECT count(*) FROM '{tmp_path}/steps.parquet'").fetchone()
    assert found == (80,)
    write_result("SELECT 1 AS x", "csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "x\n1\n"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["steps.parquet", "x.csv"]
    with pytest.raises(UsageError, match="parquet"):
        write_result(query, "parquet")


def test_a_broken_query_leaves_the_old_file(history: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    target.write_text("precious")
    for form in ("parquet", "csv"):
        with pytest.raises(UsageError):
            write_result("SELECT nothing FROM runs", form, target)
    assert target.read_text() == "precious"
    assert list(tmp_path.glob(".*")) == []


def test_wide_text_is_cut_by_what_it_takes_on_a_screen() -> None:
    found = sql.Result(["a"], ["VARCHAR"], [("漢字",), ("x" * 100,)])
    lines = "".join(export.table(found)).splitlines()
    assert lines[2] == "漢字"
    assert lines[3] == "x" * 59 + "…"


def test_a_snapshot_is_a_whole_history_that_others_can_open(history: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.duckdb"
    snapshot(target)
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
