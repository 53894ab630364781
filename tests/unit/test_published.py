"""Published tables: kept as printed, recomputed from their own figures, and in every history."""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path

import pytest
from history import make_run, rows, step, write
from hypothesis import given, settings
from hypothesis import strategies as st

from lorawatch.errors import HistoryBusy, UsageError
from lorawatch.published.builtin import builtin_rows, builtin_sources
from lorawatch.published.checks import checked_cells, differences, work_differences
from lorawatch.published.printed import compact, compare_cell, number, seconds
from lorawatch.published.rows import PublishedRow
from lorawatch.published.table_csv import COLUMNS, parse, read_csv
from lorawatch.recipe.loading import load
from lorawatch.storage import builtin, connection
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import ingest_run
from lorawatch.storage.published import check_source, list_published, replace_source
from lorawatch.storage.skus import find_sku
from lorawatch.system import home

# gpu, gpu_count, aggregate_tok_s, tok_s_per_gpu, scaling, efficiency_pct, avg_power_w, tok_s_per_w
PRINTED = """
NVIDIA RTX PRO 4500 Workstation Edition,1,2777,2777,1.00,,289.8,9.6
NVIDIA RTX PRO 4500 Workstation Edition,2,5429,2715,1.96,97.8,455.3,11.9
NVIDIA RTX PRO 4500 Workstation Edition,3,8083,2694,2.91,97.0,623.9,13.0
NVIDIA RTX PRO 4500 Workstation Edition,4,10717,2679,3.86,96.5,771.7,13.9
NVIDIA RTX PRO 5000,1,3721,3721,1.00,,358.3,10.4
NVIDIA RTX PRO 5000,2,7216,3608,1.93,97.8,568.2,12.7
NVIDIA RTX PRO 6000 Server Edition,1,4962,4962,1.00,,404.6,12.3
NVIDIA RTX PRO 6000 Server Edition,2,9541,4771,1.92,96.1,662.6,14.4
"""
EPOCHS = {
    "5e6": ["~30 min", "~8 min", "~12 min", "~9 min"],
    "5e7": ["~5 hr", "~1.3 hr", "~1.9 hr", "~1.5 hr"],
    "5e8": ["~50 hr", "~13 hr", "~19 hr", "~15 hr"],
    "5e9": ["~21 days", "~5.4 days", "~8 days", "~6 days"],
}
FIGURES = ("tok_s", "tok_s_per_gpu", "scaling", "efficiency_pct", "avg_power_w", "tok_per_j")


def systems() -> list[PublishedRow]:
    return [row for row in builtin_rows() if row.dataset is None]


def epochs() -> list[PublishedRow]:
    return [row for row in builtin_rows() if row.dataset is not None]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_cells_are_kept_as_printed() -> None:
    lines = [",".join(row.printed.get(c, "") for c in ("sku", "gpu_count", *FIGURES)) for row in systems()]
    assert lines == PRINTED.strip().splitlines()
    found: dict[str, list[str]] = {}
    for row in epochs():
        found.setdefault(row.printed["dataset_tokens"], []).append(row.printed["epoch_time"])
    assert found == EPOCHS
    assert [(r.sku, r.gpu_count) for r in epochs()[:4]] == [
        ("RTX PRO 4500", 1), ("RTX PRO 4500", 4), ("RTX PRO 5000", 2), ("RTX PRO 6000 Server Edition", 2),
    ]  # fmt: skip
    assert [r.dataset for r in epochs()[::4]] == [
        "Small (course notes)", "Medium (department corpus)", "Large (institutional archive)", "Research-scale",
    ]  # fmt: skip


def test_every_published_cell_recomputes_but_two() -> None:
    assert len(systems()) == 8
    assert len(epochs()) == 16
    # 8 × (per GPU, scaling, tok/s/W) + 5 efficiencies + 16 epoch times
    assert checked_cells(builtin_rows()) == 45
    found = [(d.row.what, d.column, d.printed, round(d.computed, 2)) for d in differences(builtin_rows())]
    assert found == [
        ("RTX PRO 5000 × 2", "scaling", "1.93", 1.94),
        ("RTX PRO 5000 × 2", "efficiency_pct", "97.8", 96.96),
    ]
    assert [d.reason for d in differences(builtin_rows())] == ["7,216 ÷ 3,721", "100 × 7,216 ÷ (2 × 3,721)"]
    assert [r.what for r in systems() if r.efficiency_pct is None] == [
        "RTX PRO 4500 × 1", "RTX PRO 5000 × 1", "RTX PRO 6000 Server Edition × 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "column", "cell"),
    [
        ("RTX PRO 4500 × 2", "scaling", "1.97"),
        ("RTX PRO 4500 × 4", "efficiency_pct", "96.6"),
        ("RTX PRO 4500 × 3", "tok_s_per_gpu", "2696"),
        ("RTX PRO 6000 Server Edition × 2", "tok_per_j", "13.9"),
        ("RTX PRO 6000 Server Edition × 2, Research-scale", "epoch_time", "~7 days"),
        ("RTX PRO 4500 × 4, Medium (department corpus)", "epoch_time", "~1.4 hr"),
    ],
)
def test_one_last_digit_off_is_found(what: str, column: str, cell: str) -> None:
    changed = [
        PublishedRow(**{**vars(r), "printed": {**r.printed, column: cell}}) if r.what == what else r
        for r in builtin_rows()
    ]
    assert (what, column) in {(d.row.what, d.column) for d in differences(changed)}
    assert len(differences(changed)) == 3


def test_what_the_package_says_about_the_table() -> None:
    (source,) = builtin_sources()
    assert (source.source, source.publisher) == ("Exxact", "Exxact")
    assert source.url == "https://www.exxactcorp.com/blog/benchmark/lora-fine-tuning-benchmark-on-nvidia-gpus"
    for printed, short in source.skus.items():
        found = find_sku(printed)
        assert found is not None, printed
        assert found.sku == short, printed
    notes = {row.what: row.note for row in systems()}
    assert "14.4" in (notes["RTX PRO 4500 × 4"] or "")
    assert "14.4" in (notes["RTX PRO 6000 Server Edition × 2"] or "")
    assert "1.94× and 97.0%" in (notes["RTX PRO 5000 × 2"] or "")
    for text, where in source.notes:
        assert {(s, n) for s, n in where} <= {(r.sku, r.gpu_count) for r in systems()}, text
    # a note that names a limit is right about it
    for row in systems():
        sku = find_sku(row.sku)
        assert sku is not None
        assert row.avg_power_w is not None
        over = row.avg_power_w > sku.power_limit_w * row.gpu_count
        assert over == ("limit" in (row.note or "")), row.what


def test_the_built_in_recipe_is_the_published_work() -> None:
    (source,) = builtin_sources()
    recipe = load("exxact-8b").to_dict()
    assert work_differences(source.work, recipe) == {}
    recipe["model"]["name"] = "meta-llama/Llama-3.1-8B-Instruct"
    assert work_differences(source.work, recipe) == {}
    recipe["data"]["sequence_length"] = 1024
    recipe["lora"] = None
    assert work_differences(source.work, recipe) == {
        "data.sequence_length": (512, 1024),
        "lora.rank": (16, None),
        "lora.targets": (["q_proj", "v_proj"], None),
    }


@pytest.mark.parametrize(
    ("printed", "computed", "agrees"),
    [
        ("1.93", 1.9392636, False),
        ("1.94", 1.9392636, True),
        ("1.00", 1.0, True),
        ("13.9", 13.85, True),
        ("13.9", 13.951, False),
        ("2715", 2714.5, True),
        ("10,717", 10717.4, True),
        ("97.8%", 97.7494, False),
        ("1.96×", 1.9640, True),
        ("~30 min", 1800.5, True),
        ("~1.3 hr", 4665, True),
        ("~1.3 hr", 4861, False),
        ("~6 days", 524_054, True),
        ("1 h 30 min", 5429, True),
        ("1 h 30 min", 5431, False),
    ],
)
def test_a_cell_agrees_within_its_last_digit(printed: str, computed: float, agrees: bool) -> None:
    assert compare_cell(printed, computed) == agrees


def test_what_a_figure_was_computed_from_was_rounded_too() -> None:
    # 5,429 ÷ (2 × 2,777) is 97.7493; 5,429.4 ÷ (2 × 2,776.6) is 97.77, which rounds to the printed 97.8
    assert not compare_cell("97.8", 100 * 5429 / (2 * 2777))
    assert compare_cell("97.8", 100 * 5429 / (2 * 2777), spread=0.027)


@pytest.mark.parametrize("text", ["", "fast", "1.2.3", "1,23", "--1", "1e9999", "5 apples", "~", "٣", "nan", "inf"])
def test_what_is_no_figure_is_refused(text: str) -> None:
    for read in (number, seconds):
        with pytest.raises(ValueError):
            read(text)


def test_figures_read_as_people_write_them() -> None:
    assert [round(seconds(t).value, 6) for t in ("~1.3 hr", "30 min", "~5.4 days", "1h30min", "90 s", "2 weeks")] == [
        4680, 1800, 466_560, 5400, 90, 1_209_600,
    ]  # fmt: skip
    assert compact(1.9392, like="1.93") == "1.94"
    assert compact(10717.3, like="10,700") == "10,717"
    assert compact(4861, like="~1.3 hr") == "1.4 hr"


def test_a_table_is_read_with_its_headings_as_others_write_them(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "\ufeffGPU,GPU count,Aggregate tok/s,Tok/s per GPU,Scaling,Efficiency pct,Avg power W,tok/s per W,model,"
        "lora rank,note\r\n"
        '"NVIDIA A100-SXM4-80GB",1,"2,000",2000,1.00×,—,400,5.0,m,16,\r\n'
        "\r\n"
        "NVIDIA A100-SXM4-80GB,2×,3900,1950,1.95x,97.5%,800 W,4.9,m,16,second\r\n",
    )  # fmt: skip
    first, second = read_csv(path)
    assert first.source == "table"
    assert (first.tok_s, first.efficiency_pct, first.note) == (2000, None, None)
    assert first.printed["tok_s"] == "2,000"
    assert "efficiency_pct" not in first.printed
    assert (second.gpu_count, second.scaling, second.efficiency_pct, second.avg_power_w) == (2, 1.95, 97.5, 800)
    assert second.work == {"model": {"name": "m"}, "lora": {"rank": 16}}
    assert differences([first, second]) == []
    assert read_csv(path, source="Lab", named=str.lower)[0].sku == "nvidia a100-sxm4-80gb"
    assert read_csv(path, source="Lab")[0].source == "Lab"


def test_a_data_sets_size_is_read_in_every_spelling_that_the_command_line_takes(tmp_path: Path) -> None:
    spellings = ("5e6", "5M", '"5,000,000"', "5_000_000", "~5M tokens")
    lines = [f"A,{n},set,{text},30 min" for n, text in enumerate(spellings, 1)]
    rows = read_csv(table(tmp_path, "\n".join(["sku,gpu_count,dataset,dataset_tokens,epoch_time", *lines])))
    assert [row.dataset_tokens for row in rows] == [5_000_000] * 5


def test_configurations_of_different_work_are_not_compared(tmp_path: Path) -> None:
    path = table(
        tmp_path, "sku,gpu_count,tok_s,scaling,sequence_length\nA,1,100,1,512\nA,2,150,1.5,512\nA,2,300,2,1024\n"
    )
    assert checked_cells(read_csv(path)) == 2
    assert differences(read_csv(path)) == []


HEADER = "sku,gpu_count,tok_s,epoch_time,dataset_tokens,url"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (HEADER, "no rows"),
        ("sku,gpucount,tok_s\nA,1,1", "line 1: there is no column 'gpucount'\n  did you mean gpu_count?"),
        ("sku,gpu_count,watt\nA,1,1", "no column 'watt'"),
        ("sku;gpu_count;tok_s\nA;1;1", "separated by commas"),
        ("sku,tok_s\nA,1", "column gpu_count is missing"),
        ("sku,gpu,gpu_count,tok_s\nA,A,1,1", "column sku is there twice"),
        (f"{HEADER}\nA,two,1,,,", "line 2, column gpu_count: 'two' is not a whole number from 1"),
        (f"{HEADER}\nA,0,1,,,", "column gpu_count: '0' is not"),
        (f"{HEADER}\nA,1.5,1,,,", "column gpu_count: '1.5' is not"),
        (f"{HEADER}\n,1,1,,,", "line 2, column sku: '' is not a name"),
        (f"{HEADER}\nA,1,fast,,,", "column tok_s: 'fast' is not a figure over 0"),
        (f"{HEADER}\nA,1,-5,,,", "column tok_s: '-5' is not"),
        (f"{HEADER}\nA,1,0,,,", "column tok_s: '0' is not"),
        (f"{HEADER}\nA,1,97%,,,", "column tok_s: '97%' is not"),
        (f"{HEADER}\nA,1,1e99,,,", "column tok_s: '1e99' is not"),
        (f"{HEADER}\nA,1,,soon,,", "column epoch_time: 'soon' is not a time over 0"),
        (f"{HEADER}\nA,1,,30,,", "column epoch_time: '30' is not a time"),
        (f"{HEADER}\nA,1,1,,1.5,", "column dataset_tokens: '1.5' is not a whole number"),
        (f"{HEADER}\nA,1,1,,,javascript:x", "column url: 'javascript:x' is not an address"),
        (f"{HEADER}\nA,1,,,5M,", "column tok_s: '' is not a figure: a row needs one of tok_s, epoch_time"),
        (f"{HEADER}\nA,1,1", "line 2, column epoch_time: '' is not one of the 6 cells"),
        (f"{HEADER}\nA,1,1,,,,x", "line 2, column 7: 'x' is not one of the 6 cells"),
        (f"{HEADER}\nA,1,1,,,\nA,1,2,,,", "line 3, column sku: 'A' is not a configuration of its own: line 2 has it"),
        (f'{HEADER}\n"A,1,1,,,', "line 2 is no CSV"),
        (f'{HEADER}\n"A\n1",1,1,,,\nB,x,1,,,', "line 4, column gpu_count: 'x'"),
    ],
)
def test_a_broken_table_is_refused_with_line_and_column(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_csv(table(tmp_path, text))
    assert told in str(caught.value)
    assert "table.csv" in str(caught.value)


def test_the_first_broken_cell_is_named_and_the_others_counted(tmp_path: Path) -> None:
    path = table(tmp_path, f"{HEADER}\nA,1,1,,,\nB,x,fast,,,\nC,1,1,never,,\n")
    with pytest.raises(UsageError, match=r"line 3, column gpu_count: 'x' is not .*; 2 more cells cannot be taken"):
        read_csv(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"sku,gpu_count,tok_s\nA\xff,1,1\n")
    with pytest.raises(UsageError, match="line 2 is not UTF-8"):
        read_csv(path)
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_csv(missing)


def test_text_from_a_table_cannot_drive_the_terminal(tmp_path: Path) -> None:
    (row,) = read_csv(table(tmp_path, "sku,gpu_count,tok_s,note\nA\x1b[31m,1,5,a\x1b]0;t\x07b\u202e\n"))
    assert (row.sku, row.note, row.printed["sku"]) == ("A", "ab", "A")


cells = st.text(alphabet=st.sampled_from(list('15.,~%×-eMhr"\n \x1b[A—')), max_size=12)


@settings(max_examples=300)
@given(st.lists(st.lists(cells, min_size=4, max_size=4), max_size=3))
def test_any_text_is_read_or_refused(lines: list[list[str]]) -> None:
    text = "\n".join(["sku,gpu_count,tok_s,epoch_time", *(",".join(line) for line in lines)])
    try:
        found = parse(text, "t", "s", str)
    except UsageError:
        return
    for row in found:
        assert row.gpu_count >= 1
        assert row.tok_s is None or row.tok_s > 0
        differences([row])


def test_the_columns_are_those_of_the_history() -> None:
    with writing():
        pass
    known = {r[0] for r in rows("SELECT column_name FROM duckdb_columns() WHERE table_name = 'published_results'")}
    assert {c.name for c in COLUMNS if c.work is None} <= known
    assert set(PublishedRow.__dataclass_fields__) <= known


# the history


def test_every_history_has_the_published_tables() -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    assert rows("SELECT count(*), count(DISTINCT source) FROM published_results") == [(24, 1)]
    assert rows("SELECT sku, gpu_count, differs FROM v_published WHERE len(differs) > 0") == [
        ("RTX PRO 5000", 2, ["scaling", "efficiency_pct"])
    ]
    assert rows(
        "SELECT scaling, round(computed_scaling, 2), efficiency_pct, round(computed_efficiency_pct, 1), printed ->> 'scaling' "
        "FROM v_published WHERE sku = 'RTX PRO 5000' AND gpu_count = 2 AND dataset IS NULL"
    ) == [(1.93, 1.94, 97.8, 97.0, "1.93")]
    assert rows(
        "SELECT epoch_time, epoch_s, round(computed_epoch_s), builtin FROM v_published "
        "WHERE sku = 'RTX PRO 4500' AND gpu_count = 4 AND dataset_tokens = 50000000"
    ) == [("~1.3 hr", 4680.0, 4665.0, True)]
    (work,) = rows("SELECT DISTINCT work FROM v_published")
    assert json.loads(work[0])["lora"] == {"rank": 16, "targets": ["q_proj", "v_proj"]}
    assert rows("SELECT count(*) FROM v_published WHERE printed ->> 'scaling' = '1.00'") == [(3,)]


def test_the_tables_are_refreshed_once_when_the_package_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with writing() as connection:
        assert not builtin.refresh(connection)
        connection.execute("UPDATE published_results SET builtin = 'older', tok_s = 1")
        connection.execute("DELETE FROM published_results WHERE dataset IS NOT NULL")
    with writing() as connection:
        assert connection.execute("SELECT count(*), min(tok_s) FROM published_results").fetchone() == (24, 2777)
        monkeypatch.setattr(builtin, "insert", None)  # nothing more is written
        assert not builtin.refresh(connection)


def test_an_ordinary_open_asks_one_small_question_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with writing():
        pass
    opened: list[object] = []
    real = connection._open
    monkeypatch.setattr(connection, "_open", lambda *a, **k: opened.append(a) or real(*a, **k))
    monkeypatch.setattr(builtin, "builtin_rows", None)  # no table is read
    run = make_run()
    write(run.rank_journal(0), step(1))
    ingest_run(run)
    assert len(opened) == 1


def mine(count: int = 2) -> list[PublishedRow]:
    return [
        PublishedRow(
            source="Lab", sku="A100 SXM 80GB", gpu_count=n, tok_s=1000.0 * n, scaling=1.0 * n, url="https://x.org",
            work={"model": {"name": "m"}}, printed={"tok_s": str(1000 * n), "scaling": "1.0"},
        )
        for n in range(1, count + 1)
    ]  # fmt: skip


def test_rows_come_back_as_they_went_in() -> None:
    assert list_published() == list(builtin_rows())
    assert not home.history_file().exists(), "asking makes nothing"
    assert replace_source(mine()) == 0
    assert list_published() == [*builtin_rows(), *mine()]
    assert rows("SELECT gpu_count, differs FROM v_published WHERE NOT builtin ORDER BY 1") == [
        (1, []),
        (2, ["scaling"]),
    ]
    assert replace_source(mine(1)) == 2
    assert list_published() == [*builtin_rows(), *mine(1)]


def test_a_source_is_replaced_only_when_that_is_asked_for() -> None:
    replace_source(mine())
    with pytest.raises(UsageError, match="2 rows of 'Lab' already"):
        replace_source(mine(1), replace=False)
    with pytest.raises(UsageError, match="2 rows of 'Lab' already"):
        check_source(mine(1), replace=False)
    assert check_source(mine(1), replace=True) == 2
    assert len(list_published()) == 26
    own = [PublishedRow(source="Exxact", sku="A", gpu_count=1, tok_s=1.0)]
    for refused in (replace_source, lambda r: check_source(r, replace=True)):
        with pytest.raises(UsageError, match="lorawatch ships"):
            refused(own)
    assert len(list_published()) == 26


def test_imported_rows_outlive_new_tables_in_the_package() -> None:
    replace_source(mine())
    with writing() as connection:
        connection.execute("UPDATE published_results SET builtin = 'older' WHERE builtin IS NOT NULL")
    replace_source([PublishedRow(source="Other", sku="B", gpu_count=1, tok_s=1.0)])
    assert rows("SELECT source, count(*) FROM published_results GROUP BY source ORDER BY source") == [
        ("Exxact", 24), ("Lab", 2), ("Other", 1),
    ]  # fmt: skip


def test_a_held_history_is_waited_for_and_left_alone() -> None:
    with writing():
        pass
    with connection.held(home.history_file(), deadline=time.monotonic() + 5), pytest.raises(HistoryBusy):
        replace_source(mine(), deadline_s=0.05)
    assert list_published() == list(builtin_rows())


def test_the_tables_are_in_the_package() -> None:
    folder = resources.files("lorawatch.assets") / "published"
    assert sorted(f.name for f in folder.iterdir()) == [
        "exxact.yaml", "exxact_epoch_estimates.csv", "exxact_rtx_pro_lora.csv",
    ]  # fmt: skip
