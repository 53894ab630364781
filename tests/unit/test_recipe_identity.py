"""What the recipe's keys say of two runs: whether they are the same work, and what a resume may change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from history import a_whole_run, rows

from lorawatch.comparing.work import differences, facts
from lorawatch.recipe import identity, loading
from lorawatch.recipe.fields import recipe_fields
from lorawatch.recipe.schema import Recipe, Work
from lorawatch.run.checkpoints import differences as changes
from lorawatch.storage.connection import reading, writing
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.workloads import workload

RECIPE = loading.load("exxact-8b").to_dict()


def test_every_key_says_what_it_means_for_two_runs() -> None:
    assert set(identity.keys()) == {key.path for key in recipe_fields()}
    assert not [path for path, key in identity.keys().items() if key.work and key.resume]


def test_a_key_that_says_nothing_is_named() -> None:
    class Silent(msgspec.Struct):
        rank: Work[int] = 16
        depth: int = 1

    with pytest.raises(identity.SilentKey, match=r"^depth is none of Work, Fixed and Free"):
        identity.keys(Silent)


OTHER: Mapping[str, Any] = {
    "name": "other", "model.name": "tiny-llama", "model.quantization": "nf4", "lora.targets": ["q_proj"], "data.source": "demo",
    "data.eval_source": "rows.csv", "data.eval_split": "test", "launch.gpus": "0,1",
}  # fmt: skip


def other(path: str, value: Any) -> Any:
    """Another value that the key may have."""
    if path in OTHER:
        return OTHER[path]
    hint = _hint(path)
    literals = [v for t in (hint, *get_args(hint)) if "Literal" in str(get_origin(t)) for v in get_args(t)]
    if literals:
        return next(v for v in literals if v != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}2"
    return 1 if value is None else value + 0.25 if isinstance(value, float) else value + 1


def _hint(path: str) -> Any:
    hint: Any = Recipe
    for name in path.split("."):
        hint = get_type_hints(hint)[name]
    return hint


@pytest.mark.parametrize("path", list(identity.keys()))
def test_the_digest_the_facts_and_the_keys_agree_on_what_is_the_same_work(path: str) -> None:
    """On rows of a hub data set, where each key of the work matters."""
    one = {**RECIPE, "data": {**RECIPE["data"], "source": "some/chats"}}
    if path == "train.eval_every":
        one["data"]["eval_share"] = 0.1
    two = copy.deepcopy(one)
    section, _, name = path.rpartition(".")
    (two[section] if section else two)[name] = other(path, (one[section] if section else one)[name])
    assert [p for p, _, _ in changes(one, two)] == [path], "the key takes this value"
    same = not identity.keys()[path].work
    assert (workload(one) == workload(two)) is same
    assert (differences(facts(one), facts(two)) == []) is same


def test_what_a_key_does_not_change_is_the_same_work() -> None:
    file = {**RECIPE, "data": {**RECIPE["data"], "source": "chats.jsonl"}}
    for one, section, values in (
        (RECIPE, "model", {"name": "meta-llama/Llama-3.1-8B-Instruct"}),
        (RECIPE, "lora", {"targets": ["v_proj", "q_proj"]}),
        (RECIPE, "lora", {"dropout": 0}),
        (RECIPE, "data", {"packing": True}),
        (file, "data", {"split": "test"}),
    ):
        two = {**one, section: {**one[section], **values}}
        assert workload(two) == workload(one)
        assert differences(facts(two), facts(one)) == []


def test_what_a_resume_may_change_is_no_work() -> None:
    assert set(identity.changeable()) == {
        "data.eval_source", "data.eval_split", "train.steps", "train.epochs", "train.checkpoint_every",
        "train.keep_checkpoints", "train.on_nan", "train.eval_every", "launch.gpus", "launch.max_restarts",
        "launch.hang_timeout_s", "measure.exclude_steps", "measure.sample_hz",
    }  # fmt: skip


def test_an_own_command_equals_itself_alone() -> None:
    assert workload(None, "train.py") == workload({}, "train.py") == "command:train.py"


def test_a_stored_digest_stays_what_it_is() -> None:
    """Where this fails, runs in histories no longer meet: raise the number in `storage/workloads.py`."""
    assert workload(RECIPE) == "work-2:9968b89b57cc"


@pytest.mark.parametrize("opened", [reading, writing])
def test_runs_of_an_older_definition_stand_beside_those_of_today(lorawatch_home: Path, opened: Any) -> None:
    old, new = a_whole_run("old", gpus=1), a_whole_run("new", gpus=2)
    for run in (old, new):
        finish_run(run)
    with writing() as connection:
        connection.execute("UPDATE run_summary SET workload = '0123456789ab' WHERE run_id = ?", [old.run_id])
    with opened() as connection:
        answer = connection.execute("SELECT ranks, scaling IS NOT NULL FROM v_scaling ORDER BY ranks").fetchall()
    assert answer == [(1, True), (2, True)], "the old run is the base of the new one"
    assert rows("SELECT count(DISTINCT workload), bool_and(starts_with(workload, 'work-2:')) FROM run_summary") == [
        (1, True)
    ]
    assert rows("SELECT count(*) FROM run_summary") == [(2,)]


def test_a_run_from_before_the_options_is_the_same_work_as_one_with_them_off() -> None:
    before = copy.deepcopy(RECIPE)
    for key in ("use_rslora", "use_dora"):
        assert before["lora"].pop(key) is False
    assert workload(before) == workload(RECIPE)


def test_each_option_is_another_work() -> None:
    digests = {workload(RECIPE)}
    for key, value in (("use_rslora", True), ("use_dora", True), ("targets", "all-linear"), ("rank", 8)):
        digests.add(workload({**RECIPE, "lora": {**RECIPE["lora"], key: value}}))
    assert len(digests) == 5


def test_what_is_evaluated_on_is_in_no_step() -> None:
    before = copy.deepcopy(RECIPE)
    for key in ("eval_share", "eval_source", "eval_split"):
        before["data"].pop(key)
    before["train"].pop("eval_every")
    assert workload(before) == workload(RECIPE)
    for overrides in (["data.eval_share=0.1", "train.eval_every=5"], ["data.source=demo", "data.eval_source=b.csv"]):
        told = loading.load("exxact-8b", overrides)
        plain = loading.load("exxact-8b", overrides[:1] if "source" in overrides[0] else [])
        assert workload(told.to_dict()) == workload(plain.to_dict())


def test_packing_is_another_work_where_rows_differ_in_length() -> None:
    before = copy.deepcopy(RECIPE)
    assert before["data"].pop("packing") is False
    assert workload(before) == workload(RECIPE)
    for source, digests in (("demo", 2), ("synthetic", 1)):
        found = {
            workload(loading.load("exxact-8b", [f"data.source={source}", f"data.packing={packing}"]).to_dict())
            for packing in ("true", "false")
        }
        assert len(found) == digests
