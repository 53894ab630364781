"""Which configurations do the same work, and what is named where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lorawatch.comparing.work import assumed, differences, facts, one_line, published_facts, words
from lorawatch.models.shapes import shape_name
from lorawatch.published.builtin import builtin_rows
from lorawatch.recipe import loading

EXXACT = loading.load("exxact-8b").to_dict()
PUBLISHED: Mapping[str, Any] = builtin_rows()[0].work or {}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**EXXACT, section: {**EXXACT[section], **values}}


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("model", {"name": "tiny-llama"}, "model tiny-llama, not NousResearch/Meta-Llama-3.1-8B-Instruct"),
        ("model", {"dtype": "float16"}, "precision float16, not bfloat16"),
        ("model", {"quantization": "nf4"}, "precision bfloat16 over nf4, not bfloat16"),
        ("lora", {"rank": 8}, "LoRA rank 8 on q_proj, v_proj, not rank 16 on q_proj, v_proj"),
        ("lora", {"targets": ["q_proj"]}, "LoRA rank 16 on q_proj, not rank 16 on q_proj, v_proj"),
        ("lora", {"dropout": 0.05}, "LoRA rank 16 on q_proj, v_proj, dropout 0.05, not rank 16 on q_proj, v_proj"),
        ("lora", {"use_dora": True}, "LoRA rank 16 on q_proj, v_proj, dora, not rank 16 on q_proj, v_proj"),
        ("lora", {"use_rslora": True}, "LoRA rank 16 on q_proj, v_proj, rslora, not rank 16 on q_proj, v_proj"),
        ("lora", {"targets": "all-linear"}, "LoRA rank 16 on all-linear, not rank 16 on q_proj, v_proj"),
        ("data", {"sequence_length": 1024}, "sequence length 1024 tokens, not 512 tokens"),
        ("data", {"source": "demo"}, "rows of demo, not full length"),
        ("data", {"source": "demo", "packing": True}, "rows packed, of demo, not full length"),
        ("train", {"batch_size_per_gpu": 8}, "batch per GPU 8, not 2"),
        ("train", {"gradient_accumulation": 4}, "batch per GPU 2 × 4 accumulated, not 2"),
        ("train", {"engine": "fast"}, "engine fast, not reference"),
        ("train", {"gradient_checkpointing": True}, "gradient checkpointing on, not off"),
    ],
)
def test_what_a_step_computes_keeps_configurations_apart(section: str, values: dict[str, Any], told: str) -> None:
    other = facts(changed(section, **values))
    assert differences(other, facts(EXXACT)) == [told]
    assert len(differences(facts(EXXACT), other)) == 1


def test_another_token_definition_is_another_work() -> None:
    counted = facts({**EXXACT, "tokens": "padding left out"})
    assert differences(counted, facts(EXXACT)) == ["tokens padding left out, not positions computed, padding included"]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("model", {"weights": "pretrained"}),
        ("model", {"name": "meta-llama/Llama-3.1-8B-Instruct"}),
        ("lora", {"alpha": 64}),
        ("lora", {"targets": ["v_proj", "q_proj"]}),
        ("lora", {"use_dora": False, "use_rslora": False}),
        ("data", {"packing": True}),  # random tokens are full rows already
        ("train", {"steps": 1000, "learning_rate": 1e-5, "seed": 3, "schedule": "cosine"}),
        ("launch", {"gpus": "0,1", "strategy": "separate"}),
    ],
)
def test_what_takes_a_step_no_more_time_does_not(section: str, values: dict[str, Any]) -> None:
    assert differences(facts(changed(section, **values)), facts(EXXACT)) == []


def test_all_linear_layers_are_the_same_work_however_they_are_listed() -> None:
    names = ["up_proj", "gate_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
    listed, every = changed("lora", targets=names), changed("lora", targets="all-linear")
    assert facts(listed)["LoRA"] == "rank 16 on all-linear"
    assert differences(facts(listed), facts(every)) == []
    assert len(differences(facts(changed("lora", targets=names[1:])), facts(every))) == 1
    unknown = {"name": "somebody/unknown"}  # it may have linear layers of other names
    assert len(differences(facts({**listed, "model": unknown}), facts({**every, "model": unknown}))) == 1


def test_the_built_in_recipe_does_the_published_benchmarks_work() -> None:
    assert differences(facts(EXXACT), published_facts(PUBLISHED, "Exxact")) == []
    assert assumed(PUBLISHED) == []


def test_several_differences_are_named_in_the_order_of_the_facts() -> None:
    other = changed("train", batch_size_per_gpu=8)
    other["model"] = {**other["model"], "dtype": "float16"}
    assert differences(facts(other), facts(EXXACT)) == [
        "precision float16, not bfloat16",
        "batch per GPU 8, not 2",
    ]


def test_a_table_that_does_not_tell_its_work_agrees_with_nothing_but_itself() -> None:
    half = {"model": {"name": "Llama-3.1-8B-Instruct"}, "lora": {"rank": 16}}
    told = published_facts(half, "Blog")
    assert differences(told, facts(EXXACT)) == [
        "precision not stated",
        "sequence length not stated",
        "batch per GPU not stated",
    ]
    assert differences(told, published_facts(half, "Blog")) == []
    assert differences(told, published_facts(half, "Other blog")) != []
    nothing = published_facts(None, "Blog")
    assert len(differences(nothing, facts(EXXACT))) == 5
    assert (
        words(nothing)
        == "engine reference · not stated: model, precision, LoRA, sequence length, batch per GPU (by Blog)"
    )


def test_a_table_that_tells_all_but_targets_and_engine_is_taken_at_the_defaults_which_is_known() -> None:
    told = {k: dict(v) for k, v in PUBLISHED.items()}
    del told["lora"]["targets"], told["train"]["engine"]
    assert differences(published_facts(told, "Blog"), facts(EXXACT)) == []
    assert assumed(told) == ["LoRA targets", "engine"]


def test_a_command_of_ones_own_is_the_same_work_as_itself_only() -> None:
    mine = {"command": "train.sh"}
    assert differences(mine, {"command": "train.sh"}) == []
    assert differences(mine, facts(EXXACT)) == ["the command train.sh, whose work is not known"]
    assert differences(facts(EXXACT), mine) == ["the command train.sh, whose work is not known"]
    assert words(mine) == "the command train.sh"


def test_a_models_other_names_are_its_own() -> None:
    llama = "NousResearch/Meta-Llama-3.1-8B-Instruct"
    for name in (llama, "meta-llama/Llama-3.1-8B", "Llama-3.1-8B-Instruct", "META-LLAMA/llama-3.1-8b-instruct"):
        assert shape_name(name) == llama, name
    assert shape_name("somebody/Llama-3.1-8B-Instruct-mine") == "somebody/Llama-3.1-8B-Instruct-mine"


def test_the_work_in_one_line() -> None:
    assert words(facts(EXXACT)) == (
        "NousResearch/Meta-Llama-3.1-8B-Instruct bfloat16 · LoRA rank 16 on q_proj, v_proj · "
        "batch 2 × 512 tokens · engine reference"
    )
    demo = {**changed("data", source="demo"), "train": {"gradient_checkpointing": True}}
    assert words(facts(demo)).endswith("engine reference · rows of demo · gradient checkpointing")


def test_text_from_outside_is_one_harmless_line_of_bounded_length() -> None:
    assert one_line("a\x1b[31m\nb\t\u202ec\u2028d") == "a b c d"
    assert len(one_line("x" * 10_000)) == 200
    hostile = facts({"model": {"name": "\x1b]0;own\x07m\n# h"}, "data": {"source": "f\nile"}})
    assert (hostile["model"], hostile["rows"]) == ("m # h", "of f ile")


def test_sections_that_are_none_are_as_the_defaults() -> None:
    assert facts({"model": None, "lora": "x", "train": 3})["LoRA"] == "rank 16 on q_proj, v_proj"
