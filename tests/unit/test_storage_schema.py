"""The schema says what it holds, and opens only what it knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from history import a_whole_run, make_run, rows, step, write

from lorawatch.errors import HistoryError, HistoryTooNew
from lorawatch.storage import schema
from lorawatch.storage.connection import reading, writing
from lorawatch.storage.engine import duckdb
from lorawatch.storage.files import wal
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.system import home

# DESIGN, section 5: what everybody's queries may count on
CONTRACT = {
    "runs": "run_id name state failure recipe command host started_at ended_at attempts world_size lorawatch_version "
    "torch_version driver_version git_commit tags",
    "gpus": "run_id host gpu_index gpu_uuid sku memory_total_bytes power_limit_w used",
    "steps": "run_id attempt rank step gpu_uuid ended_at duration_s tokens nonpad_tokens label_tokens loss grad_norm "
    "learning_rate data_wait_s memory_allocated_bytes memory_reserved_bytes phase",
    "evaluations": "run_id attempt rank step ended_at duration_s label_tokens loss",
    "gpu_samples": "run_id gpu_uuid sampled_at power_w power_average_w energy_j memory_used_bytes utilization_pct "
    "temperature_c sm_clock_mhz memory_clock_mhz event_reasons",
    "host_samples": "run_id host sampled_at cpu_pct memory_used_bytes",
    "events": "run_id at kind severity rank message detail",
    "run_summary": "run_id sku gpu_count coupling tok_s tok_s_ci95 mean_step_tok_s tok_s_per_gpu step_p50_s step_p95_s "
    "avg_power_w avg_power_all_gpus_w energy_j tok_per_j peak_vram_bytes mfu tokens measured_steps final_loss",
    "published_results": "source sku gpu_count url note",
}
VIEWS = {"v_steps", "v_evaluations", "v_runs", "v_scaling", "v_epoch_estimates", "v_published", "v_events"}


@pytest.fixture
def history() -> Path:
    with writing():
        pass
    return home.history_file()


def test_the_tables_have_the_columns_of_the_contract(history: Path) -> None:
    for table, columns in CONTRACT.items():
        found = {r[0] for r in rows(f"SELECT column_name FROM duckdb_columns() WHERE table_name = '{table}'")}
        assert set(columns.split()) <= found, table
    times = rows(
        "SELECT data_type FROM duckdb_columns() WHERE NOT internal AND (ends_with(column_name, '_at') OR column_name = 'at')"
    )
    assert set(times) == {("TIMESTAMP WITH TIME ZONE",)}


def test_every_table_view_and_column_has_a_comment(history: Path) -> None:
    for kind, name in (
        ("tables", "table_name"),
        ("views", "view_name"),
        ("columns", "table_name || '.' || column_name"),
    ):
        assert rows(f"SELECT {name} FROM duckdb_{kind}() WHERE NOT internal AND comment IS NULL") == []
    assert {r[0] for r in rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")} == VIEWS


def test_facts_have_no_constraints_and_no_indexes(history: Path) -> None:
    assert rows("SELECT * FROM duckdb_constraints()") == []
    assert rows("SELECT * FROM duckdb_indexes()") == []


def test_the_file_can_be_opened_by_the_duckdb_of_last_year(history: Path) -> None:
    with duckdb.connect(str(history), read_only=True) as connection:
        (tags,) = connection.execute(
            "SELECT tags FROM duckdb_databases() WHERE database_name = 'history'"
        ).fetchone() or ("",)
    assert "v1.5.0" in str(tags)
    assert history.stat().st_mode & 0o777 == 0o600
    assert not wal(history).exists()


@pytest.fixture
def with_migration(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds one more migration, of this text."""
    names = [*schema._names(), (schema.latest() + 1, "made_up.sql")]
    text = schema._text

    def add(sql: str) -> None:
        monkeypatch.setattr(schema, "_names", lambda: names)
        monkeypatch.setattr(schema, "_text", lambda name: sql if "made_up" in name else text(name))
        schema.latest.cache_clear()

    yield add
    schema.latest.cache_clear()


def test_an_older_history_is_migrated_once_and_keeps_its_rows(
    history: Path, with_migration: Callable[[str], None]
) -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    before = schema.latest()
    with_migration("ALTER TABLE steps ADD COLUMN extra INTEGER")
    with writing() as connection:
        assert schema.version(connection) == before + 1
        assert not schema.migrate(connection, "here")
    assert rows("SELECT step, extra FROM steps") == [(1, None)]
    assert rows("SELECT count(*) FROM v_steps") == [(1,)]


def test_a_history_of_the_first_schema_is_brought_up_to_date(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    with duckdb.connect(str(home.history_file())) as connection:
        connection.execute(schema._CREATE_MIGRATIONS)
        connection.execute(schema._text("migrations/0001_initial.sql"))
        connection.execute("INSERT INTO schema_migrations VALUES (1, '0001_initial.sql', now(), '0.1.0')")
        connection.execute("INSERT INTO runs (run_id, name, state) VALUES ('r', 'old', 'completed')")
    assert rows("SELECT name, coupling FROM v_runs") == [("old", "ddp")], "a reader need not wait for a writer"
    with writing() as connection:
        assert schema.version(connection) == schema.latest()
    assert rows("SELECT count(*) FROM published_results") == [(24,)]
    assert rows("SELECT version FROM schema_migrations ORDER BY 1") == [(n,) for n, _ in schema._names()]
    assert {r[0] for r in rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")} == VIEWS


def test_a_migration_that_fails_leaves_nothing_of_it(history: Path, with_migration: Callable[[str], None]) -> None:
    before = schema.latest()
    with_migration("DROP TABLE events; SELECT nonsense")
    with pytest.raises(HistoryError), writing():
        pass
    assert rows("SELECT max(version) FROM schema_migrations") == [(before,)]
    assert rows("SELECT count(*) FROM events") == [(0,)]
    assert {r[0] for r in rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")} == VIEWS


def test_a_newer_schema_is_refused_and_left_alone(history: Path) -> None:
    with writing() as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, 'future', now(), '9.9')")
    before = history.read_bytes()
    run = make_run()
    for refused in (lambda: ingest_run(run), lambda: rows("SELECT 1")):
        with pytest.raises(HistoryTooNew, match="schema 99"):
            refused()
    assert history.read_bytes() == before


def queries() -> list[str]:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    return re.findall(r"```sql\n(.*?)```", readme, re.DOTALL)


def test_the_ten_queries_of_the_readme_answer() -> None:
    finish_run(a_whole_run())
    finish_run(a_whole_run("lost-one", state="failed"))
    found = queries()
    assert len(found) >= 10
    for query in found:
        with reading() as connection:
            described = connection.execute(f"DESCRIBE {query}").fetchall()
            text = ", ".join(f"c{i}::VARCHAR" for i in range(len(described)))
            names = ", ".join(f"c{i}" for i in range(len(described)))
            assert connection.execute(f"SELECT {text} FROM ({query.rstrip().rstrip(';')}) AS t({names})").fetchall(), (
                query
            )
