"""A form's view of the recipe: derived from the structs, so that a new key needs no code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from lorawatch.recipe import schema
from lorawatch.recipe.fields import ABSENT, Field, problem, problems, read, recipe_fields, value_at, write

FIELDS = {key.path: key for key in recipe_fields()}


class Inner(msgspec.Struct, kw_only=True):
    """A section."""

    mode: Literal["fast", "slow"] | None = None
    """How
    it goes."""
    deep: bool = False


class Outer(msgspec.Struct, kw_only=True):
    """A recipe of another day."""

    inner: Inner = msgspec.field(default_factory=Inner)
    size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    words: list[str] = msgspec.field(default_factory=lambda: ["a", "b"])
    numbers: list[int] = []
    anything: dict[str, int] = {}
    name: str


def test_every_key_of_the_recipe_is_a_field() -> None:
    paths = set()
    for info in msgspec.structs.fields(schema.Recipe):
        if isinstance(info.type, type) and issubclass(info.type, msgspec.Struct):
            paths |= {f"{info.name}.{f.name}" for f in msgspec.structs.fields(info.type)}
        else:
            paths.add(info.name)
    assert set(FIELDS) == paths


def test_a_key_has_its_kind_choices_default_bounds_and_help() -> None:
    dtype, steps = FIELDS["model.dtype"], FIELDS["train.steps"]
    assert (dtype.section, dtype.kind, dtype.choices[:2], dtype.default) == (
        "model", "choice", ("bfloat16", "float16"), "bfloat16",
    )  # fmt: skip
    assert dtype.help == "Number format of the frozen base weights."
    assert (steps.kind, steps.default, steps.allowed) == ("number", "60", "a whole number ≥ 1 or null")
    assert FIELDS["lora.targets"].default == "q_proj, v_proj"
    assert FIELDS["model.name"].required


def test_a_struct_that_nobody_has_seen_makes_a_form() -> None:
    found = {key.path: (key.kind, key.choices, key.default, key.help) for key in recipe_fields(Outer)}
    assert found == {
        "inner.mode": ("choice", ("fast", "slow", "null"), "null", "How it goes."),
        "inner.deep": ("choice", ("true", "false"), "false", ""),
        "size": ("number", (), "null", ""),
        "words": ("list", (), "a, b", ""),
        "numbers": ("list", (), "", ""),
        "anything": ("value", (), "{}", ""),
        "name": ("text", (), "", ""),
    }


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("lora.rank", "8", 8),
        ("lora.rank", " 8 ", 8),
        ("lora.rank", "eight", "eight"),
        ("train.learning_rate", "2e-4", 2e-4),
        ("train.steps", "null", None),
        ("lora.rank", "null", "null"),
        ("lora.targets", "q_proj,v_proj ,", ["q_proj", "v_proj"]),
        ("lora.targets", "['a,b', c]", ["a,b", "c"]),
        ("lora.targets", " all-linear", "all-linear"),
        ("lora.targets", "all-linear,", ["all-linear"]),
        ("launch.gpus", "0,2", "0,2"),
        ("model.name", "12", "12"),
        ("model.weights", "random", "random"),
        ("model.name", "[", "["),
    ],
)
def test_what_is_typed_is_read_as_its_key_means_it(path: str, text: str, value: Any) -> None:
    assert read(FIELDS[path], text) == value


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_a_default_is_written_as_it_is_read(path: str) -> None:
    key = FIELDS[path]
    if not key.required:
        value = read(key, key.default)
        assert problem(key, value) is None
        assert write(value) == key.default


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("lora.rank", 0, "not a whole number ≥ 1"),
        ("lora.rank", "x", "not a whole number ≥ 1"),
        ("lora.dropout", 1.0, "not a number ≥ 0 and < 1"),
        ("train.learning_rate", float("inf"), "not a finite number"),
        ("model.weights", "none", "not one of pretrained, random"),
        ("model.name", ABSENT, "is missing"),
        ("model.name", "", "is missing"),
        ("lora.targets", [], "not a list (text each) with at least one entry or one of all-linear"),
        ("lora.targets", "all-linear", None),
        ("lora.targets", "all", "not a list (text each) with at least one entry or one of all-linear"),
        ("lora.rank", ABSENT, None),
        ("lora.rank", 16, None),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(path: str, value: Any, words: str | None) -> None:
    assert problem(FIELDS[path], value) == words


def test_all_that_is_wrong_is_found_at_once() -> None:
    assert problems({"lora": {"rank": 0}, "train": "x"}) == {
        "model.name": "is missing",
        "lora.rank": "not a whole number ≥ 1",
    }
    assert value_at({"train": "x"}, "train.steps") is ABSENT


def test_fields_are_plain_data() -> None:
    assert FIELDS["lora.rank"] == Field(
        "lora.rank", "lora", "rank", "number", (), "16", False, "a whole number ≥ 1", "", int
    )
