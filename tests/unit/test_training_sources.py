"""Reading data files: every form, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorawatch.errors import DataError
from lorawatch.recipe import loading
from lorawatch.training import data as training_data
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collator import Collator
from lorawatch.training.data import SyntheticData, build_datasets, build_training_data
from lorawatch.training.sources import Row, read_rows
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
    with pytest.raises(DataError, match="cannot be loaded"):
        list(read_rows("nobody/no-such-set-here"))


def test_the_bundled_data_set_is_readable_and_large_enough() -> None:
    recipe = loading.load("demo")
    data = build_training_data(recipe, byte_tokenizer(), 320, 2)
    assert len(data) >= 150


def test_a_data_set_smaller_than_a_step_and_one_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n' * 3)
    recipe = loading.load("tiny", [f"data.source={path}"])
    with pytest.raises(DataError, match=r"3 usable rows, but one step takes 4 \(2 a rank × 1 accumulated × 2 ranks\)"):
        build_training_data(recipe, byte_tokenizer(), 320, 2)
    path.write_text(json.dumps({"prompt": "p" * 50, "completion": "c"}) + "\n")
    with pytest.raises(DataError, match="none of its 1 rows has a token to learn within"):
        build_training_data(recipe, byte_tokenizer(), 320, 1)


def numbered(path: Path, rows: int) -> list[str]:
    path.write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(rows)))
    return [f"data.source={path}", "train.seed=3"]


def texts(data: Any) -> list[str]:
    tokenizer = byte_tokenizer()
    return [tokenizer.decode(data[n]["input_ids"], skip_special_tokens=True) for n in range(len(data))]


def test_a_share_of_the_rows_is_held_out_by_seed(tmp_path: Path) -> None:
    settings = numbered(tmp_path / "a.jsonl", 40)
    whole = build_datasets(loading.load("tiny", settings), byte_tokenizer(), 320, 2)
    assert whole.evaluation is None
    train, held = build_datasets(loading.load("tiny", [*settings, "data.eval_share=0.1"]), byte_tokenizer(), 320, 2)
    assert held is not None
    assert (len(train), len(held)) == (36, 4)
    assert sorted(texts(train) + texts(held)) == sorted(texts(whole.train)), "each row once"
    assert texts(train) == [t for t in texts(whole.train) if t not in texts(held)], "in their order"
    assert train.fingerprint != whole.train.fingerprint
    again = build_datasets(loading.load("tiny", [*settings, "data.eval_share=0.1"]), byte_tokenizer(), 320, 2)
    assert again.evaluation is not None
    assert texts(again.evaluation) == texts(held)
    other = build_datasets(
        loading.load("tiny", [*settings, "data.eval_share=0.1", "train.seed=4"]), byte_tokenizer(), 320, 2
    )
    assert other.evaluation is not None
    assert texts(other.evaluation) != texts(held)
    with pytest.raises(
        DataError, match=r"data.eval_share is 0.01, which of the 40 rows of .*a.jsonl is none"
    ) as caught:
        build_datasets(loading.load("tiny", [*settings, "data.eval_share=0.01"]), byte_tokenizer(), 320, 2)
    assert caught.value.hint is not None
    assert "data.eval_share: 0.025" in caught.value.hint
    with pytest.raises(DataError, match=r"2 usable rows beside the 38 of data.eval_share, but one step takes 4"):
        build_datasets(loading.load("tiny", [*settings, "data.eval_share=0.95"]), byte_tokenizer(), 320, 2)


def test_rows_to_evaluate_on_from_a_file_of_their_own(tmp_path: Path) -> None:
    settings, other = numbered(tmp_path / "a.jsonl", 8), tmp_path / "b.jsonl"
    recipe = loading.load("tiny", [*settings, f"data.eval_source={other}"])
    with pytest.raises(DataError, match=r"data.eval_source is .*b.jsonl': no such file"):
        build_datasets(recipe, byte_tokenizer(), 320, 1)
    other.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    sets = build_datasets(recipe, byte_tokenizer(), 320, 1)
    assert sets.evaluation is not None
    assert texts(sets.evaluation) == ["one", "two", "three"]
    assert len(sets.train) == 8


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        (["data.eval_split=test"], ("o/set", "test", "data.source")),
        (["data.eval_source=o/other"], ("o/other", "train", "data.eval_source")),
        (["data.eval_source=o/other", "data.eval_split=test"], ("o/other", "test", "data.eval_source")),
        (["data.split=a", "data.eval_source=o/other"], ("o/other", "a", "data.eval_source")),
    ],
)
def test_the_split_to_evaluate_on(
    keys: list[str], asked: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[tuple[str, str, str]] = []

    def read(source: str, split: str, key: str) -> list[Row]:
        wanted.append((source, split, key))
        return [Row({"text": "one row"}, "row 1")] * 8

    monkeypatch.setattr(training_data, "read_rows", read)
    build_datasets(loading.load("tiny", ["data.source=o/set", *keys]), byte_tokenizer(), 320, 2)
    assert wanted == [("o/set", "a" if "data.split=a" in keys else "train", "data.source"), asked]


def test_random_rows_to_evaluate_on_are_none_that_are_trained_on() -> None:
    settings = ["data.eval_share=0.25", "data.sequence_length=8"]
    train, held = build_datasets(loading.load("tiny", [*settings, "train.steps=6"]), None, 320, 2)
    longer = build_datasets(loading.load("tiny", [*settings, "train.steps=600"]), None, 320, 2)
    assert held is not None
    assert longer.evaluation is not None
    assert (len(train), len(held)) == (24, 6)
    trained = {tuple(longer.train[n]["input_ids"].tolist()) for n in range(len(longer.train))}
    assert not any(tuple(held[n]["input_ids"].tolist()) in trained for n in range(6))
    assert held[2]["input_ids"].tolist() == longer.evaluation[2]["input_ids"].tolist()


def test_the_collator_pads_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "ab", "completion": "c"}\n{"prompt": "", "completion": "xyzxyz"}\n')
    data = build_training_data(loading.load("tiny", [f"data.source={path}"]), byte_tokenizer(), 320, 1)
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
