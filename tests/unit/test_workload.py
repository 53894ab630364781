"""The digest by which runs of the same work are found: a new key of the recipe must not part old runs from new ones."""

from __future__ import annotations

import copy

from lorawatch import recipe
from lorawatch.storage.summary import _workload

RECIPE = recipe.load("exxact-8b").to_dict()


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
