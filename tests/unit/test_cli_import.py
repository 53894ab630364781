"""`lorawatch import`, through the real program."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import lorawatch, sql

from lorawatch.published.table_csv import COLUMNS

GOOD = (
    "gpu,gpu_count,tok_s,scaling,avg_power_w,tok_per_j\n"
    'NVIDIA A100-SXM4-80GB,1,"2,000",1.00,400,5.0\n'
    "NVIDIA A100-SXM4-80GB,2,3900,1.97,800,4.9\n"
)
EPOCHS = "gpu,gpus,dataset,tokens,published\nA100 80GB SXM,2,mine,50M,~3.6 hr\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.csv"
    path.write_text(GOOD)
    return path


def test_a_table_comes_in_and_its_wrong_cells_are_named(good: Path, lorawatch_home: Path) -> None:
    result = lorawatch("import", str(good), "--source", "Lab")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "Lab: 2 rows, 1 GPU model: A100 SXM 80GB",
        "4 cells computed from others; 1 cell printed otherwise",
        "  A100 SXM 80GB × 2  scaling         printed 1.97, computed 1.95  (3,900 ÷ 2,000)",
    ]
    assert sql(
        lorawatch_home,
        "SELECT sku, gpu_count, tok_s, printed ->> 'sku', printed ->> 'tok_s', differs FROM v_published WHERE source = 'Lab' "
        "ORDER BY gpu_count",
    ) == [
        ("A100 SXM 80GB", 1, 2000.0, "NVIDIA A100-SXM4-80GB", "2,000", []),
        ("A100 SXM 80GB", 2, 3900.0, "NVIDIA A100-SXM4-80GB", "3900", ["scaling"]),
    ]


def test_a_dry_run_leaves_the_history_as_it_is(good: Path, lorawatch_home: Path) -> None:
    result = lorawatch("import", str(good), "--dry-run")
    assert result.returncode == 0
    assert "good: 2 rows" in result.stdout
    assert result.stderr == "nothing was imported (--dry-run)\n"
    assert not (lorawatch_home / "history.duckdb").exists()


def test_a_second_import_is_refused_and_replaces_when_asked(good: Path, lorawatch_home: Path) -> None:
    assert lorawatch("import", str(good)).returncode == 0
    for more in ([], ["--dry-run"]):
        again = lorawatch("import", str(good), *more)
        assert again.returncode == 2
        assert "2 rows of 'good' already" in again.stderr
        assert "--replace" in again.stderr
    good.write_text(GOOD.splitlines()[0] + "\nH100 PCIe,1,5000,1,350,14.3\n")
    replaced = lorawatch("import", str(good), "--replace")
    assert replaced.returncode == 0
    assert "in place of 2 rows" in replaced.stdout
    assert sql(lorawatch_home, "SELECT sku FROM v_published WHERE source = 'good'") == [("H100 PCIe",)]


def test_a_broken_row_is_named_and_nothing_is_imported(good: Path, lorawatch_home: Path) -> None:
    assert lorawatch("import", str(good)).returncode == 0
    good.write_text(GOOD + "H100 PCIe,1,fast,1,350,14.3\n")
    result = lorawatch("import", str(good), "--replace")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "good.csv line 4, column tok_s: 'fast' is not a figure over 0" in result.stderr
    assert sql(lorawatch_home, "SELECT count(*) FROM v_published WHERE source = 'good'") == [(2,)]


def test_several_files_of_one_source_are_one_table(good: Path, tmp_path: Path) -> None:
    epochs = tmp_path / "epochs.csv"
    epochs.write_text(EPOCHS)
    alone = lorawatch("import", str(epochs), "--dry-run")
    assert "0 cells computed from others" in alone.stdout
    both = lorawatch("import", str(good), str(epochs), "--source", "Lab")
    assert both.returncode == 0
    assert "Lab: 3 rows" in both.stdout
    assert "5 cells computed from others; 1 cell printed otherwise" in both.stdout  # 50 M ÷ 3,900 is 3.56 hr


def test_help_documents_the_columns() -> None:
    out = lorawatch("import", "--help").stdout
    for column in COLUMNS:
        assert f"  {column.name} " in out
    assert "also called aggregate_tok_s" in out
