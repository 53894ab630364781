"""The digest by which runs of the same work are found: a new key of the recipe must not part old runs from new ones."""

from __future__ import annotations

import copy

from lorawatch.recipe import loading
from lorawatch.storage.summary import _workload

RECIPE = loading.load("exxact-8b").to_dict()


def test_a_run_from_before_the_options_is_the_same_work_as_one_with_them_off() -> None:
    before = copy.deepcopy(RECIPE)
    for key in ("use_rslora", "use_dora"):
        assert before["lora"].pop(key) is False
    assert _workload(before, None) == _workload(RECIPE, None)


def test_each_option_is_another_work() -> None:
    digests = {_workload(RECIPE, None)}
    for key, value in (("use_rslora", True), ("use_dora", True), ("targets", "all-linear"), ("rank", 8)):
        digests.add(_workload({**RECIPE, "lora": {**RECIPE["lora"], key: value}}, None))
    assert len(digests) == 5


def test_what_is_evaluated_on_is_in_no_step() -> None:
    before = copy.deepcopy(RECIPE)
    for key in ("eval_share", "eval_source", "eval_split"):
        before["data"].pop(key)
    before["train"].pop("eval_every")
    assert _workload(before, None) == _workload(RECIPE, None)
    for overrides in (["data.eval_share=0.1", "train.eval_every=5"], ["data.source=demo", "data.eval_source=b.csv"]):
        told = loading.load("exxact-8b", overrides)
        plain = loading.load("exxact-8b", overrides[:1] if "source" in overrides[0] else [])
        assert _workload(told.to_dict(), None) == _workload(plain.to_dict(), None)


def test_packing_is_another_work_where_rows_differ_in_length() -> None:
    before = copy.deepcopy(RECIPE)
    assert before["data"].pop("packing") is False
    assert _workload(before, None) == _workload(RECIPE, None)
    for source, digests in (("demo", 2), ("synthetic", 1)):
        found = {
            _workload(loading.load("exxact-8b", [f"data.source={source}", f"data.packing={packing}"]).to_dict(), None)
            for packing in ("true", "false")
        }
        assert len(found) == digests
