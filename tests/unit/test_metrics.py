"""The registry of metrics: the history follows it, and every reader shows what it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from history import a_whole_run, rows

from lorawatch.errors import HistoryError
from lorawatch.run.metrics import GPU_METRICS, HOST_METRICS, PANE_METRICS, PLOTS, STEP_METRICS, TABLES
from lorawatch.run.records import GpuSample, HostSample
from lorawatch.storage import connection, schema
from lorawatch.storage.connection import writing
from lorawatch.storage.curves import run_curves, run_ranks
from lorawatch.storage.engine import duckdb
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.past import read_past
from lorawatch.system import home


def test_every_reading_of_a_sample_is_a_metric() -> None:
    assert {"sampled_at", "gpu_uuid", *(m.column for m in GPU_METRICS)} == set(GpuSample.__struct_fields__)
    assert {"sampled_at", "host", *(m.column for m in HOST_METRICS)} == set(HostSample.__struct_fields__)


def test_names_labels_and_limits_say_one_thing() -> None:
    for metrics in (GPU_METRICS, HOST_METRICS):
        columns = [m.column for m in metrics]
        assert {m.limit for m in metrics if m.limit} <= set(columns)
    shown = [m.name for m in PANE_METRICS]
    labels = [m.label for m in PANE_METRICS]
    headings = [p.label for p in PLOTS]
    for words in (shown, labels, headings, [m.ranks for m in GPU_METRICS if m.ranks]):
        assert len(set(words)) == len(words), words
    assert all(m.comment.endswith(".") for m in (*GPU_METRICS, *HOST_METRICS, *STEP_METRICS))


def columns_of_the_history() -> dict[tuple[str, str], tuple[str, str]]:
    found = rows("SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal")
    return {(table, column): (kind, comment) for table, column, kind, comment in found}


def test_the_history_has_each_metric_with_its_type_and_comment() -> None:
    with writing():
        pass
    there = columns_of_the_history()
    for table, metrics in TABLES.items():
        for metric in metrics:
            assert there[table, metric.column] == (metric.sql, metric.comment)


@pytest.fixture
def older() -> Iterator[str]:
    """A history of before there were temperatures and free space, with a run in it; the run's id."""
    finish_run(run := a_whole_run())
    with duckdb.connect(str(home.history_file())) as opened:
        opened.execute("ALTER TABLE gpu_samples DROP COLUMN temperature_c")
        opened.execute("ALTER TABLE host_samples DROP COLUMN disk_free_bytes")
    yield run.run_id


def test_an_older_history_gets_the_columns_of_new_metrics_and_keeps_its_rows(older: str) -> None:
    version = schema.latest()
    assert rows("SELECT count(power_w) > 0, count(temperature_c) FROM gpu_samples") == [(True, 0)], (
        "a reader need not wait"
    )
    there = columns_of_the_history()
    assert there["gpu_samples", "temperature_c"] == ("DOUBLE", "Core temperature, °C.")
    assert there["host_samples", "disk_free_bytes"][0] == "BIGINT"
    finish_run(a_whole_run("later"))
    assert rows("SELECT count(temperature_c) > 0 FROM gpu_samples") == [(True,)]
    assert rows("SELECT max(version) FROM schema_migrations") == [(version,)], "an older lorawatch may still read it"


def test_an_older_history_that_cannot_be_changed_is_read_without_them(
    older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise HistoryError("the folder is another user's")

    monkeypatch.setattr(connection, "_bring_up_to_date", refused)
    curves = run_curves(older)
    assert curves is not None
    assert set(curves.series[None]) == {"tok_s", "loss", "power_w", "memory_bytes", "step"}
    assert [r.readings["temperature_c"] for r in run_ranks(older)] == [None, None]
    past = read_past(older)
    assert past is not None
    names = {name for bins in past.gpu_bins.values() for name, *_ in bins}
    assert "power_w" in names
    assert "temperature_c" not in names


def test_a_column_that_cannot_be_added_leaves_the_history_as_it_was(
    older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise duckdb.IOException("no space")

    monkeypatch.setattr(schema, "_comment", fails)
    with pytest.raises(Exception, match="no space"), writing():
        pass
    with duckdb.connect(str(home.history_file()), read_only=True) as opened:
        (there,) = opened.execute(
            "SELECT count(*) FROM duckdb_columns() WHERE column_name = 'temperature_c'"
        ).fetchone() or (1,)
    assert there == 0
