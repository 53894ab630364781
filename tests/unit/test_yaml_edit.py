"""One value of a recipe's text changes; comments, order and style of the rest stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorawatch.errors import RecipeError
from lorawatch.recipe.edit import line_of, mapping, remove, set_value
from lorawatch.recipe.fields import ABSENT, recipe_fields, value_at

FLOW = """\
# mine
name: demo   # a word
lora: {rank: 16, targets: [q_proj, v_proj]}  # small
launch: {gpus: all}
"""
BLOCK = """\
name: demo
lora:
  # how wide
  rank: 16
  targets:
    - q_proj
    - v_proj  # and this

launch:
  gpus: all
"""


def test_a_value_is_replaced_where_it_stands() -> None:
    assert set_value(FLOW, "lora.rank", 8) == FLOW.replace("rank: 16", "rank: 8")
    assert set_value(BLOCK, "lora.rank", 8) == BLOCK.replace("rank: 16", "rank: 8")
    assert set_value(FLOW, "name", "mine") == FLOW.replace("name: demo", "name: mine")


def test_a_list_over_several_lines_becomes_one_line() -> None:
    changed = set_value(BLOCK, "lora.targets", ["up_proj"])
    assert "  targets: [up_proj]  # and this\n" in changed
    assert "# how wide" in changed


def test_a_new_key_comes_last_or_where_the_order_has_it() -> None:
    assert "{rank: 16, targets: [q_proj, v_proj], alpha: 32}  # small" in set_value(FLOW, "lora.alpha", 32)
    order = ["lora.rank", "lora.alpha", "lora.targets"]
    assert "{rank: 16, alpha: 32, targets: [q_proj, v_proj]}" in set_value(FLOW, "lora.alpha", 32, order)
    assert "  rank: 16\n  alpha: 32\n  targets:\n" in set_value(BLOCK, "lora.alpha", 32, order)
    assert "    - v_proj  # and this\n  alpha: 32\n" in set_value(BLOCK, "lora.alpha", 32)


def test_a_new_section_is_added() -> None:
    assert set_value(FLOW, "train.steps", 5) == FLOW + "train: {steps: 5}\n"
    order = ["lora.rank", "train.steps", "launch.gpus"]
    assert "train: {steps: 5}\nlaunch: {gpus: all}\n" in set_value(FLOW, "train.steps", 5, order)
    assert set_value("lora:\n", "lora.rank", 4) == "lora: {rank: 4}\n"
    assert set_value("", "lora.rank", 4) == "lora: {rank: 4}\n"


def test_an_emptied_key_goes_and_an_empty_section_with_it() -> None:
    assert "lora: {targets: [q_proj, v_proj]}" in remove(FLOW, "lora.rank")
    assert "lora: {rank: 16}" in remove(FLOW, "lora.targets")
    assert remove(FLOW, "launch.gpus") == FLOW.replace("launch: {gpus: all}\n", "")
    assert "  # how wide\n  targets:" in remove(BLOCK, "lora.rank")
    assert remove(FLOW, "train.steps") == FLOW


def test_text_with_meaning_in_yaml_is_quoted() -> None:
    for value in ("a: b", "a, b", "{x}", "# no comment", "yes", "1", "", "it's", "a\nb", "ü"):
        assert mapping(set_value(FLOW, "lora.note", value))["lora"]["note"] == value


def test_a_form_that_cannot_be_edited_is_written_again_as_a_whole() -> None:
    text = "name: >-\n  demo\n  of mine\nlora: {rank: 16}\n"
    assert mapping(set_value(text, "name", "x")) == {"name": "x", "lora": {"rank": 16}}


def test_a_text_with_aliases_is_refused_with_its_line() -> None:
    for edit in (lambda text: set_value(text, "name", "x"), lambda text: remove(text, "name"), mapping):
        with pytest.raises(RecipeError, match="line 2: anchors"):
            edit("name: demo\nlora: &l {rank: 16}\nother: *l\n")
    assert line_of("name: demo\nlora: &l {rank: 16}\n", "lora.rank") is None


def test_what_is_no_mapping_is_refused_with_its_line() -> None:
    with pytest.raises(RecipeError, match="line 3"):
        set_value("name: demo\nlora: {rank: 16\n", "lora.rank", 1)
    with pytest.raises(RecipeError, match="not a mapping"):
        remove("- a\n", "lora.rank")


def test_the_line_of_a_value_or_of_its_section() -> None:
    assert (line_of(BLOCK, "lora.rank"), line_of(BLOCK, "lora.rnak"), line_of(BLOCK, "nothing")) == (4, 2, None)


_PATHS = [key.path for key in recipe_fields()]
_VALUES = st.one_of(
    st.integers(), st.booleans(), st.none(), st.text(max_size=12), st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(max_size=5), max_size=3),
)  # fmt: skip


@example(BLOCK, [("name", "\x85"), ("data.split", "ä\u2028þ"), ("lora.targets", ["\u2029"])])
@given(st.sampled_from([FLOW, BLOCK, ""]), st.lists(st.tuples(st.sampled_from(_PATHS), _VALUES), max_size=6))
def test_whatever_is_typed_the_text_says_it(text: str, edits: list[tuple[str, Any]]) -> None:
    for path, value in edits:
        text = set_value(text, path, value, _PATHS)
        assert value_at(mapping(text), path) == value
    for path, _ in edits:
        text = remove(text, path)
    assert all(value_at(mapping(text), path) is ABSENT for path, _ in edits)
