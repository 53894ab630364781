"""Reading data files: every form, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorawatch import recipe as recipes
from lorawatch.errors import DataError
from lorawatch.training.counts import BatchCounts
from lorawatch.training.data import Collator, SyntheticData, build_data
from lorawatch.training.sources import read_rows
from lorawatch.training.tokenization import byte_tokenizer

CHAT = [{"role": "user", "content": 'q, "é"\n'}, {"role": "assistant", "content": "a"}]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(r) for r in rows) + "\n")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "data.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "lines.json").write_text("\n".join(json.dumps(r) for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert [r.fields for r in read_rows(str(path))] == rows, path
    assert [r.where for r in read_rows(str(tmp_path / "a.jsonl"))] == [f"{tmp_path}/a.jsonl, line {n}" for n in (1, 3)]


def test_csv_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\n"two\nlines, quoted",x\np,y\n')
    assert [r.fields for r in read_rows(str(tmp_path / "a.csv"))] == [
        {"prompt": "two\nlines, quoted", "completion": "x"},
        {"prompt": "p", "completion": "y"},
    ]
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert [r.fields for r in read_rows(str(tmp_path / "a.txt"))] == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: broken JSON at column"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "a.jsonl, line 2: a row is a JSON object, not list"),
        ("a.jsonl", b"\n \n", "a.jsonl: the data set is empty"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl: not UTF-8"),
        ("a.json", b'[{"text": "x"},\n {"text": }]', "a.json, line 2: broken JSON"),
        ("a.json", b"[]", "a.json: the data set is empty"),
        ("a.json", b'[{"text": "x"}, 3]', "a.json, row 2: a row is a JSON object, not int"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "a.csv, line 3: 2 fields expected"),
        ("a.csv", b"prompt,completion\n", "a.csv: the data set is empty"),
        ("a.parquet", b"not parquet at all", "a.parquet: not a Parquet file"),
        ("a.xml", b"<x/>", "unknown kind of file '.xml'"),
    ],
)
def test_broken_files_name_file_and_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_rows(str(path)))
    assert says in error.value.message
    assert name in error.value.message


def test_missing_files_and_names_that_are_nothing(tmp_path: Path) -> None:
    for source, says in (
        (str(tmp_path / "gone.jsonl"), "no such file"),
        (str(tmp_path), "a folder"),
        ("no such thing!", "neither a file nor a hub id"),
    ):
        with pytest.raises(DataError, match=says):
            list(read_rows(source))


def test_a_hub_id_without_a_network_is_a_data_error() -> None:
    with pytest.raises(DataError, match="not to be had"):
        list(read_rows("nobody/no-such-set-here"))


def test_the_bundled_data_set_is_readable_and_large_enough() -> None:
    recipe = recipes.load("demo")
    data = build_data(recipe, byte_tokenizer(), 320, 2)
    assert len(data) >= 150


def test_a_data_set_smaller_than_a_step_and_one_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n' * 3)
    recipe = recipes.load("tiny", [f"data.source={path}"])
    with pytest.raises(DataError, match=r"3 usable rows, but one step takes 4 \(2 a rank × 1 accumulated × 2 ranks\)"):
        build_data(recipe, byte_tokenizer(), 320, 2)
    path.write_text(json.dumps({"prompt": "p" * 50, "completion": "c"}) + "\n")
    with pytest.raises(DataError, match="none of its 1 rows has a token to learn within"):
        build_data(recipe, byte_tokenizer(), 320, 1)


def test_the_collator_pads_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "ab", "completion": "c"}\n{"prompt": "", "completion": "xyzxyz"}\n')
    data = build_data(recipes.load("tiny", [f"data.source={path}"]), byte_tokenizer(), 320, 1)
    counts = BatchCounts()
    collate = Collator(0, counts)
    batch = collate([data[0], data[1]])  # 4 and 7 positions, 2 and 7 of them learned
    assert batch["input_ids"].shape == (2, 7)
    assert batch["attention_mask"].sum() == 11
    assert batch["input_ids"][0, 4:].tolist() == [0, 0, 0]
    assert batch["labels"][0].tolist()[:2] == [-100, -100]
    assert batch["labels"][0, 4:].tolist() == [-100] * 3
    assert counts.take((2, 8)) is None  # another batch's shape: its counts stay
    assert counts.take((2, 7)) == (11, 2 + 6)  # the first token of a row is nobody's prediction
    assert counts.take((2, 7)) is None
    assert "attention_mask" not in collate([data[0], data[0]])


def test_random_tokens_are_seeded_and_full_length() -> None:
    data = SyntheticData(10, 8, 320, 0)
    assert data[3]["input_ids"].tolist() == SyntheticData(10, 8, 320, 0)[3]["input_ids"].tolist()
    assert data[3]["input_ids"].tolist() != data[4]["input_ids"].tolist()
    assert data[3]["input_ids"].tolist() != SyntheticData(10, 8, 320, 1)[3]["input_ids"].tolist()
    assert len(data[3]["labels"]) == 8
    assert data[3]["input_ids"].max() < 320
