"""A user's SELECT: it reads the history and nothing else, it ends, and what it is answered with has the right form."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from history import a_whole_run, rows

from lorawatch.errors import HistoryDamaged, HistoryError, LorawatchError, UsageError
from lorawatch.storage import export, outlet, sql
from lorawatch.storage.engine import duckdb
from lorawatch.storage.export import write_result
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.outlet import Outlet
from lorawatch.storage.sql import Answer, run_select
from lorawatch.system import home

# What a hostile question tries: to write, to leave the history, to change its own bounds, to run more than one statement.
REFUSED = r"""
ATTACH '/tmp/lorawatch-evil.db'
ATTACH 'HISTORY' AS again (READ_WRITE)
DETACH history
USE main
COPY runs TO '/tmp/lorawatch-evil.csv'
COPY (SELECT 1) TO '/tmp/lorawatch-evil.parquet' (FORMAT parquet)
COPY runs FROM '/etc/passwd'
EXPORT DATABASE '/tmp/lorawatch-evil'
IMPORT DATABASE '/etc'
INSTALL httpfs
FORCE INSTALL httpfs FROM 'http://127.0.0.1'
LOAD httpfs
LOAD '/tmp/lorawatch-evil.duckdb_extension'
UPDATE EXTENSIONS
PRAGMA enable_external_access
PRAGMA database_list
SET memory_limit = '100GB'
SET GLOBAL enable_external_access = true
RESET memory_limit
SET VARIABLE x = 1
SET allowed_paths = ['/etc']
SET allowed_directories = ['/']
CALL pragma_table_info('runs')
CALL force_checkpoint()
CHECKPOINT
VACUUM
BEGIN
COMMIT
PREPARE p AS SELECT 1
EXECUTE p
DEALLOCATE p
CREATE TABLE x AS SELECT 1
CREATE TEMP TABLE x AS SELECT 1
CREATE VIEW x AS SELECT 1
CREATE MACRO f() AS 1
CREATE TEMP MACRO f() AS TABLE SELECT * FROM read_csv('/etc/passwd')
CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')
CREATE SEQUENCE s
CREATE TYPE t AS ENUM ('a')
INSERT INTO runs (run_id) VALUES ('x')
UPDATE runs SET name = 'x'
DELETE FROM runs
TRUNCATE runs
MERGE INTO runs USING (SELECT 1) s ON false WHEN NOT MATCHED THEN INSERT (run_id) VALUES ('x')
ALTER TABLE runs ADD COLUMN x INT
DROP TABLE runs
COMMENT ON TABLE runs IS 'x'
WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone
EXPLAIN DELETE FROM runs
EXPLAIN ANALYZE DELETE FROM runs
EXPLAIN ANALYZE COPY runs TO '/tmp/lorawatch-evil.csv'
EXPLAIN ANALYZE /* x */ CREATE TEMP TABLE x AS SELECT 1
EXPLAIN (ANALYZE) DELETE FROM runs
SELECT 1; DROP TABLE runs
SELECT 1; SELECT 2
SELECT 1 /* ; */; -- DROP
SELECT 1) AS a; DROP TABLE runs; --
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_csv_auto('/etc/passwd')
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM read_blob('/proc/self/environ')
SELECT * FROM read_json('/etc/passwd')
SELECT * FROM read_parquet('/etc/passwd')
SELECT * FROM parquet_metadata('/etc/passwd')
SELECT * FROM sniff_csv('/etc/passwd')
SELECT * FROM glob('/etc/*')
SELECT * FROM '/etc/passwd'
SELECT * FROM 'file:///etc/passwd'
SELECT * FROM 'http://127.0.0.1/x.csv'
SELECT * FROM query('SELECT * FROM read_csv(''/etc/passwd'')')
SELECT * FROM query('DELETE FROM runs')
SELECT * FROM query_table('/etc/passwd')
SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_csv(''/etc/passwd'')'))
DESCRIBE SELECT * FROM read_csv('/etc/passwd')
SUMMARIZE SELECT * FROM read_csv('/etc/passwd')
SELECT getenv('HOME')
SELECT * FROM duckdb_secrets()
SELECT * FROM which_secret('s3://x', 's3')
SELECT * FROM duckdb_extensions()
SELECT * FROM sqlite_scan('/etc/passwd', 'x')
SELECT * FROM os
SELECT * FROM query
SELECT $1
SELECT * FROM runs WHERE name = $name
SELECT error('Corrupt database file: computed checksum 1 does not match stored checksum 2')
SELECT error('INTERNAL Error: No space left on device; Could not set lock on file')
SELECT * FROM nowhere
SELECT nothing FROM runs
SELECT 'a'::INTEGER
SELEC 1
-- nothing
""".strip().splitlines()


@pytest.fixture
def history() -> Path:
    finish_run(a_whole_run())
    return home.history_file()


def test_what_may_not_or_cannot_run_is_refused_with_a_hint_and_changes_nothing(history: Path) -> None:
    assert len(REFUSED) > 80
    before = rows("SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM duckdb_tables())")
    files = sorted(p.name for p in history.parent.iterdir())
    for query in ["", *REFUSED]:
        with pytest.raises((UsageError, HistoryError)) as caught:
            run_select(query.replace("HISTORY", str(history)), timeout_s=10)
        assert caught.value.hint, query
        assert not isinstance(caught.value, HistoryDamaged), f"a question cannot have the history replaced: {query}"
    assert rows("SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM duckdb_tables())") == before
    assert sorted(p.name for p in history.parent.iterdir()) == files
    assert list(Path("/tmp").glob("lorawatch-evil*")) == []


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1", "FROM runs", "VALUES (1)", "TABLE runs", "DESCRIBE steps", "SHOW TABLES", "SUMMARIZE runs",
        "WITH a AS (SELECT 1) SELECT * FROM a;", "SELECT 1 -- a comment", "EXPLAIN SELECT 1", "SELECT 1 AS a, 2 AS a",
        "SELECT [created_at] FROM runs", "SELECT 1 AS \"a \"\" b\"", "-- why\nEXPLAIN (ANALYZE, FORMAT json) FROM runs",
        "SELECT * FROM test_all_types()", "SELECT interval '10000000 years'", "SELECT * FROM query('SELECT 1')",
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
    assert time.monotonic() - began < 60
    assert threading.active_count() < 10


def test_a_query_that_wants_all_memory_is_ended(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MEMORY", "20MB")
    with pytest.raises(HistoryError, match="memory"):
        run_select("SELECT list(range) FROM range(30000000)", timeout_s=20)


def test_an_answer_that_is_kept_has_a_bound(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_KEPT_BYTES", 1 << 20)
    with pytest.raises(HistoryError, match="larger than 1 MB"):
        run_select("SELECT repeat('x', 1000) FROM range(1000000)")


def test_temporary_files_are_this_users_only_bounded_and_removed(
    history: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the umask; also of Parquet."""
    monkeypatch.setattr(sql, "MEMORY", "40MB")
    monkeypatch.setattr(sql, "usable_cores", lambda: 1)
    query = "SELECT * FROM (SELECT range AS a, hash(range) AS h FROM range(4000000)) ORDER BY h"
    seen: set[tuple[str, int]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for folder in history.parent.glob("*"):
                if folder.is_dir() and folder.name not in ("runs", "open") and any(folder.iterdir()):
                    seen.add((folder.name[:7], stat.S_IMODE(folder.stat().st_mode)))

    watching = threading.Thread(target=look)
    watching.start()
    umask = os.umask(0)
    try:
        write_result(query, "parquet", tmp_path / "sorted.parquet")
    finally:
        os.umask(umask)
        over.set()
        watching.join()
    assert seen == {(".spill-", 0o700)}
    assert list(history.parent.glob(".spill*")) == []
    monkeypatch.setattr(sql, "SPILL_BYTES", 1 << 20)
    with pytest.raises(HistoryError, match="memory"):
        write_result(query, "parquet", tmp_path / "sorted.parquet")


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


def test_values_in_values_are_valid_json(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(
        "SELECT {'a': ['nan'::DOUBLE, '-inf'::DOUBLE, 1.5], 'b': 'NaN \"Infinity\"'} AS s, MAP([1], [NULL]) AS m",
        "json",
    )
    assert json.loads(capsys.readouterr().out) == [
        {"s": {"a": [None, None, 1.5], "b": 'NaN "Infinity"'}, "m": {"1": None}}
    ]


def test_many_rows_come_in_order_whatever_their_size(history: Path, tmp_path: Path) -> None:
    query = "SELECT range AS n, repeat('x', CASE WHEN range % 1000 = 7 THEN 300000 ELSE 3 END) AS t FROM range(20000)"
    write_result(query, "csv", tmp_path / "x.csv")
    with open(tmp_path / "x.csv") as file:
        next(file)
        for number, line in enumerate(file):
            assert line.startswith(f"{number},xxx")
            assert len(line) == len(f"{number},\n") + (300000 if number % 1000 == 7 else 3)
    assert number == 19_999


def test_a_broken_query_leaves_the_old_file(history: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    target.write_text("precious")
    for form in ("parquet", "csv"):
        with pytest.raises(UsageError):
            write_result("SELECT nothing FROM runs", form, target)
        with pytest.raises(UsageError):  # after some rows
            write_result("SELECT CASE WHEN range < 9000 THEN 1 ELSE error('late') END FROM range(10000)", form, target)
    assert target.read_text() == "precious"
    assert list(tmp_path.glob(".*")) == []


def test_what_cannot_be_written_says_so(history: Path, tmp_path: Path) -> None:
    for form in ("csv", "parquet"):
        with pytest.raises(LorawatchError, match="cannot be written") as caught:
            write_result("FROM runs", form, tmp_path / "nowhere" / "x")
        assert caught.value.hint
    write_result("FROM runs", "csv", Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode), "what is no file is written to, not replaced"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_files_mode_follows_the_users_umask_and_that_of_the_file_before(
    history: Path, tmp_path: Path, form: str
) -> None:
    umask = os.umask(0o027)
    try:
        write_result("FROM runs", form, tmp_path / "new")
        (tmp_path / "old").touch(0o604)
        (tmp_path / "old").chmod(0o604)
        (tmp_path / "link").symlink_to("old")
        write_result("FROM runs", form, tmp_path / "link")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604
    assert (tmp_path / "link").is_symlink(), "a link is written through"
    assert (tmp_path / "old").stat().st_size > 0


def answer(values: list[str]) -> Answer:
    return Answer(["a"], ["VARCHAR"], [False], iter([[(v,)] for v in values]))


def test_wide_text_is_cut_by_what_it_takes_on_a_screen() -> None:
    lines = "".join(export.table(answer(["漢字", "x" * 100]))).splitlines()
    assert lines[2] == "漢字"
    assert lines[3] == "x" * 59 + "…"


def test_a_table_is_as_wide_as_its_first_rows_and_hides_nothing_further_down() -> None:
    lines = "".join(export.table(answer(["ab"] * 1000 + ["y" * 30]))).splitlines()
    assert lines[1] == "──"
    assert lines[-2] == "y" * 30
    assert lines[-1] == "(1,001 rows)"


class SlowReader:
    """A terminal behind a pager that shows the first page."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.taken: list[str] = []

    def write(self, text: str) -> None:
        self.taken.append(text)
        self.go_on.wait(30)

    def flush(self) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[SlowReader]:
    reader = SlowReader()
    yield reader
    reader.go_on.set()


def test_a_slow_reader_does_not_keep_the_history_open(
    history: Path, slow: SlowReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorders write while somebody reads the answer in a pager; of one that does not fit the time runs on."""
    monkeypatch.setattr("sys.stdout", slow)
    monkeypatch.setattr(outlet, "_AT_ONCE_BYTES", 1000)
    done = threading.Event()
    asking = threading.Thread(
        target=lambda: write_result("FROM range(100000)", "csv", on_answered=done.set), daemon=True
    )
    asking.start()
    assert done.wait(20), "the history is closed"
    finish_run(a_whole_run("meanwhile"))
    slow.go_on.set()
    asking.join(20)
    assert "".join(slow.taken).count("\n") == 100_001
    slow.go_on.clear()
    monkeypatch.setattr(outlet, "_WAITING_BYTES", 1000)
    with pytest.raises(HistoryError, match=r"not read within 0\.5 s"), Outlet(slow, 0.5) as out:  # type: ignore[arg-type]
        threading.Timer(2, slow.go_on.set).start()
        while True:
            out.put("x" * 70_000)
