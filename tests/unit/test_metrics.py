"""The registry of metrics: the history follows it, and every reader shows what it has."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import metric_table
import pytest
from click.testing import CliRunner
from history import a_whole_run, rows
from metric_table import README

from lorawatch.cli.display import JsonLines
from lorawatch.cli.runs import show
from lorawatch.errors import HistoryError
from lorawatch.run.directory import Gpu, RunInfo, RunState
from lorawatch.run.metrics import GPU_METRICS, HOST_METRICS, PANE_METRICS, PLOTS, STEP_METRICS, TABLES
from lorawatch.run.records import GpuSample, HostSample, Step
from lorawatch.storage import connection, schema
from lorawatch.storage.connection import writing
from lorawatch.storage.curves import run_curves, run_ranks
from lorawatch.storage.engine import duckdb
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.past import read_past
from lorawatch.system import home
from lorawatch.watching.watch import Watch


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


def test_json_lines_have_the_last_readings_of_the_gpus_that_a_run_uses() -> None:
    cards = [Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku="X", used=i == 0) for i in (0, 1)]
    info = RunInfo(run_id="r", name="n", created_at=0, host="h", user="u", world_size=1, device="cuda", gpus=cards)
    watch = Watch(info)
    for card in cards:
        watch.feed(GpuSample(sampled_at=1.0, gpu_uuid=card.gpu_uuid, power_w=300.0, temperature_c=61.0))
        watch.feed(GpuSample(sampled_at=2.0, gpu_uuid=card.gpu_uuid, power_w=310.0))
    watch.feed(Step(attempt=0, rank=0, step=1, ended_at=2.0, duration_s=1.0, tokens=10))
    out = io.StringIO()
    JsonLines(out).update(watch, RunState(state="running"))
    (line,) = (json.loads(text) for text in out.getvalue().splitlines())
    (gpu,) = line["gpus"]
    assert (line["power_w"], gpu["gpu_uuid"], gpu["power_w"], gpu["temperature_c"]) == (310.0, "GPU-0", 310.0, 61.0)
    assert gpu["utilization_pct"] is None, "not read yet: null, not absent and not 0"


def test_show_as_json_has_the_ranks_with_what_their_gpus_showed() -> None:
    finish_run(run := a_whole_run())
    result = CliRunner().invoke(show, [run.run_id, "--json"])
    first, second = json.loads(result.stdout)["ranks"]
    assert (first["rank"], first["gpu_index"], first["power_w"], first["temperature_c"]) == (0, 0, 300.0, 60.0)
    assert (second["rank"], second["memory_bytes"], second["utilization_pct"]) == (1, 20 * 2**30, None)


def test_the_readme_has_the_table_of_the_registry() -> None:
    readme = README.read_text()
    assert metric_table.written(readme) == readme, "python tests/metric_table.py writes it"
