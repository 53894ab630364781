"""A recipe's text, whatever it is, is plain data or one message that names the line; and it never takes long."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorawatch.errors import LorawatchError, RecipeError, UsageError
from lorawatch.published.table_csv import read_csv
from lorawatch.recipe import edit, loading
from lorawatch.recipe.fields import recipe_fields
from lorawatch.recipe.yaml_text import LARGEST, parse_yaml, write_yaml
from lorawatch.screens.launch import model
from lorawatch.system import user_files

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "billion laughs": (LAUGHS, 1),
    "an anchor": ("name: x\nlora: &l {rank: 1}\n", 2),
    "an alias": ("name: x\nmodel: *m\n", 2),
    "a merge": ("name: x\ntrain:\n  <<: {steps: 1}\n", 3),
    "brackets": ("[" * 100_000, 1),
    "braces": ("{a: " * 60_000, 1),
    "dashes": ("- " * 100_000, 1),
    "question marks": ("? " * 100_000, 1),
    "many values": ("[" + "1," * 100_000 + "]", 1),
    "an object": ("name: x\nmodel: !!python/object/apply:os.system [id]\n", 2),
    "a set": ("model: !!set {a, b}\n", 1),
    "a tag of one's own": ("model: !mine x\n", 1),
    "no int": ("train: {steps: !!int x}\n", 1),
    "no float": ("train: {steps: !!float x}\n", 1),
    "no bool": ("train: {steps: !!bool x}\n", 1),
    "5,000 digits": ("name: x\ntrain: {steps: " + "1" * 5000 + "}\n", 2),
    "5,000 hex digits": ("train: {steps: 0x" + "f" * 5000 + "}\n", 1),
    "a version of 5,000 digits": ("%YAML 1." + "1" * 5000 + "\n---\na: 1\n", 1),
    "an escape beyond Unicode": ('name: x\nmodel: "\\UFFFFFFFF"\n', 2),
    "half a letter": ('name: x\nmodel: "\\ud800"\n', 2),
    "a NUL": ("name: x\nmodel: a\0b\n", 2),
    "a list as a key": ("? [a]\n: b\n", 1),
    "a section as a key": ("name: x\n{[1]: 2}: 3\n", 2),
    "a key twice": ("name: x\ntrain: {steps: 1}\ntrain: {seed: 1}\n", 3),
    "two documents": ("name: x\n---\nname: y\n", 2),
    "a tab": ("name: x\n\tmodel: y\n", 2),
    "too much": ("#" * (LARGEST + 1), None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_plain_value_is_refused_with_its_line(what: str, tmp_path: Path) -> None:
    text, line = REFUSED[what]
    began = time.process_time()
    with pytest.raises(RecipeError, match=f"line {line}: " if line else "too many") as raised:
        parse_yaml(text, "r.yaml")
    assert len(str(raised.value)) < 300
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError):
        loading.load(str(tmp_path / "r.yaml"))
    checked = model.check(text, [])
    assert checked.data is None
    assert checked.line == line
    assert time.process_time() - began < 10


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_levels_are_counted_and_not_pythons(opening: str) -> None:
    with pytest.raises(RecipeError, match="too deep"):
        parse_yaml(opening * 40, "r")
    deepest = "[" * 15 + "1" + "]" * 15
    assert parse_yaml(deepest, "r") is not None


def test_dates_are_text_and_numbers_are_numbers() -> None:
    assert parse_yaml("[2020-13-45, 2020-01-01, 2e-4, .inf, 0x10, 1_000, yes, null, =]", "r") == [
        "2020-13-45", "2020-01-01", 2e-4, math.inf, 16, 1000, True, None, "=",
    ]  # fmt: skip
    assert parse_yaml("\ufeffname: x", "r") == {"name": "x"}
    assert parse_yaml(json.dumps({"a": "\U0001f600"}), "r") == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=" + "9" * 4000, "too long"),
        ("train.steps=99999999999999999999999", "larger than"),
        ("train.learning_rate=.nan", "not a finite number"),
        ("model.name=" + "x" * 100_000, "longer than"),
        ("lora.targets=[" + "a," * 5000 + "]", "longer than"),
        ("lora.targets=[" + "a" * 5000 + "]", "longer than"),
        ("a" * 100_000 + "=1", "unknown key"),
        (".".join("a" * 60_000) + "=1", "no such key"),
        ("train.steps=[" + "[" * 1000, "too deep"),
        ("train={steps: &a 1}", "anchors"),
        ("launch.gpus=" + "1" * 5000, "longer than"),
        ("launch.gpus='" + "1" * 4000 + "'", "allowed: all"),
        ("launch.gpus=cpu:" + "9" * 4000, "allowed: all"),
        ("name=" + "n" * 1000, "letters, digits"),
        ("x" * 100_000, "not of the form"),
        ("data.source=\udcff", "no text"),
    ],
)
def test_an_override_of_any_size_is_one_short_message(override: str, words: str) -> None:
    if words == "longer than" and override.startswith("launch.gpus=1"):
        words = "too long"  # as a number
    with pytest.raises(UsageError, match=words) as raised:
        loading.load("tiny", [override])
    assert len(str(raised.value)) < 800


PIECES = [
    "name: x\n", "model: ", "train:\n  ", "lora: {rank: 1}", "\n", " ", "  ", "- ", "? ", ": ", ", ", "[", "]", "{", "}", "&a ",
    "*a", "!!int ", "!x ", "!!binary ", "|\n", ">-\n", "'", '"', "\\", "\\u", "\\UFFFFFFFF", "%YAML 1.1\n", "---\n", "...\n",
    "#", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x00", "\x1b", "\udcff", "1", "0x", "1:2", "1_", ".inf", "1e5",
    "2020-13-45", "<<: ", "=", "~", "é", "9" * 60, "null", "yes", "a.b", "@", "`", "%",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60))
@example("model: {name: x}\nlaunch: {gpus: 99999999999999999999}\n")
@example("? |\n  a\n: 1")
def test_any_text_is_data_or_a_message(text: str) -> None:
    try:
        data = parse_yaml(text, "r")
    except RecipeError as error:
        assert re.search(r"line \d+: ", error.message)
        data = None
    else:
        assert parse_yaml(write_yaml(data), "r") == data or "nan" in text.lower()  # which equals nothing
    model.check(text, [])
    for act in (lambda: loading.from_dict(data), lambda: edit.set_value(text, "train.steps", 3),
                lambda: edit.remove(text, "train.steps"), lambda: loading.load("tiny", [f"train={text}"])):  # fmt: skip
        try:
            act()
        except LorawatchError:
            continue
        except AttributeError:
            assert not isinstance(data, dict)  # from_dict takes a mapping
    edit.line_of(text, "train.steps")


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/", "a\0b", "x" * 5000, "~no-such-user/x"]
)
def test_what_is_no_file_is_said_at_once(path: str) -> None:
    with pytest.raises(RecipeError):
        loading.load(path)
    with pytest.raises(RecipeError):
        model.read_recipe_file(path)
    with pytest.raises(UsageError):
        read_csv(Path(path))


def test_a_pipe_is_read_to_its_end_and_one_without_a_writer_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(user_files, "_PIPE_WAIT_S", 0.1)
    with pytest.raises(RecipeError, match="nothing came through the pipe"):
        loading.load(str(pipe))
    reader, writer = os.pipe()
    os.write(writer, b"name: piped\nmodel: {name: x}\n")
    os.close(writer)
    try:
        assert loading.load(f"/dev/fd/{reader}").name == "piped"
    finally:
        os.close(reader)


def test_a_pipe_without_an_end_is_bounded(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def pour() -> None:
        try:
            with open(pipe, "wb") as file:
                while True:
                    file.write(b"#" * 65536)
        except BrokenPipeError:
            return

    held = os.open(pipe, os.O_RDWR)  # so that neither side waits for the other
    thread = threading.Thread(target=pour)
    thread.start()
    try:
        with pytest.raises(RecipeError, match="too many"):
            loading.load(str(pipe))
    finally:
        os.close(held)
        thread.join()


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(
    ["1e5", "2e-4", "1_0.", "2020-01-01", "<<", "=", "null", "0x1", "1:30", "a: b", "#", "\x85", "-"]
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | TEXTS


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)


@given(st.recursive(SCALARS, nested, max_leaves=8))
def test_what_is_written_is_read_back(data: object) -> None:
    shared = [data, data]  # written twice, not by an alias
    assert parse_yaml(write_yaml(shared), "r") == shared


def test_every_key_of_a_form_takes_any_text() -> None:
    from lorawatch.recipe.fields import problem, read

    for key in recipe_fields():
        for text in ("9" * 5000, "&a [*a]", "[" * 1000, "!!int x", "\udcff", "2020-13-45", "x" * 100_000, "\0"):
            words = problem(key, read(key, text))
            assert words is None or len(words) < 200
