"""A recipe is refused with its path, its value, what is allowed and the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorawatch.errors import RecipeError
from lorawatch.recipe import loading


@pytest.mark.parametrize("name", ["demo", "exxact-8b", "exxact-8b-fast", "llama-70b-qlora", "tiny"])
def test_built_in_recipes_are_valid_and_named_as_their_file(name: str) -> None:
    assert loading.load(name).name == name


def test_the_published_recipe_is_the_published_recipe() -> None:
    r = loading.load("exxact-8b")
    assert (r.lora.rank, r.lora.targets, r.train.batch_size_per_gpu) == (16, ["q_proj", "v_proj"], 2)
    assert (r.data.sequence_length, r.train.steps, r.model.dtype) == (512, 60, "bfloat16")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.ranc=3", ["lora.ranc", "3", "did you mean lora.rank?"]),
        ("lora.rank=0", ["lora.rank", "0", "≥ 1"]),
        ("train.steps=many", ["train.steps", "'many'", "whole number"]),
        ("train.engine=fest", ["train.engine", "'fest'", "one of reference"]),
        ("steps=3", ["unknown key steps", "train.steps"]),
        ("lora=3", ["lora", "section", "rank, alpha"]),
        ("launch.gpus=0,0", ["launch.gpus", "twice"]),
        ("launch.gpus=gpu", ["launch.gpus", "cpu:N"]),
        ("train.learning_rate=.inf", ["train.learning_rate", "finite"]),
        ("measure.sample_hz=50", ["measure.sample_hz", "≤ 10"]),
        ("lora.targets=[]", ["lora.targets", "at least one", "all-linear"]),
        ("lora.targets=q_proj", ["lora.targets", "'q_proj'", "a list", "all-linear"]),
        ("lora.use_rsLora=true", ["unknown key lora.use_rsLora", "did you mean lora.use_rslora?"]),
        ("name=../x", ["name", "letters"]),
        ("train.gradient_checkpointing=often", ["train.gradient_checkpointing", "'often'", "true or false"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        loading.load("tiny", [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["train.eval_every=5"],
            ["train.eval_every is 5, but there are no rows to evaluate on", "data.eval_share (0.05"],
        ),
        (
            ["data.eval_share=0.1", "data.eval_source=other.jsonl"],
            ["data.eval_share is 0.1 and data.eval_source 'other.jsonl'", "leave one out"],
        ),
        (["data.eval_share=0.1", "data.eval_split=test"], ["data.eval_share is 0.1 and data.eval_split 'test'"]),
        (["data.eval_share=1"], ["data.eval_share", "< 1"]),
        (["data.eval_source=synthetic"], ["how many random rows", "data.eval_share: 0.05"]),
        (["data.eval_split=test"], ["data.eval_split is 'test', but 'synthetic' is no hub data set"]),
        (["data.eval_source=b.jsonl", "data.eval_split=test"], ["'b.jsonl' is no hub data set and has no splits"]),
        (["data.source=a.jsonl", "data.eval_source=a.jsonl"], ["those that are trained on ('a.jsonl')"]),
        (["data.source=o/set", "data.eval_source=o/set"], ["those that are trained on", "data.eval_split"]),
        (["data.source=o/set", "data.eval_split=train"], ["those that are trained on ('o/set')"]),
        (["train.eval_every=0"], ["train.eval_every", "≥ 1"]),
    ],
)
def test_rows_to_evaluate_on_are_named_once_and_apart(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        loading.load("tiny", overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "evaluates"),
    [
        ([], False),
        (["data.eval_share=0.2"], True),
        (["data.eval_share=0.2", "train.eval_every=5"], True),
        (["data.source=o/set", "data.eval_split=test"], True),
        (["data.source=o/set", "data.eval_source=o/other"], True),
        (["data.source=o/set", "data.split=a", "data.eval_source=o/set", "data.eval_split=b"], True),
        (["data.source=demo", "data.eval_source=b.csv"], True),
    ],
)
def test_a_recipe_says_whether_it_evaluates(overrides: list[str], evaluates: bool) -> None:
    assert loading.load("tiny", overrides).data.evaluates is evaluates


def test_an_override_without_equals_sign_shows_the_form() -> None:
    with pytest.raises(RecipeError, match="key=value"):
        loading.load("tiny", ["train.steps"])


def test_an_unknown_recipe_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(RecipeError) as caught:
        loading.load("exact-8b")
    assert "did you mean 'exxact-8b'?" in str(caught.value)
    assert "tiny" in str(caught.value)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: x\nmodel: {name: y\nlora: 3\n")
    with pytest.raises(RecipeError, match=r"r\.yaml, line 3"):
        loading.load(str(file))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: x\n")
    with pytest.raises(RecipeError, match="model is missing"):
        loading.load(str(file))


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "2E-4"])
def test_numbers_as_people_write_them(text: str) -> None:
    assert loading.load("tiny", [f"train.learning_rate={text}"]).train.learning_rate == pytest.approx(2e-4)


def test_a_recipe_reads_back_what_it_writes(tmp_path: Path) -> None:
    before = loading.load("exxact-8b", ["model.weights=random", "launch.gpus=[0, 2]"])
    file = tmp_path / "again.yaml"
    file.write_text(before.to_yaml())
    assert loading.load(str(file)) == before
