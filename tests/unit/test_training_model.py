"""Finding, sizing and building models, without a network."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorawatch import recipe as recipes
from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.errors import ModelNotFound, NoSuitableGpu, RecipeError
from lorawatch.training import hub, model
from lorawatch.training.facts import model_facts
from lorawatch.training.tokenization import byte_tokenizer


def tiny(*overrides: str) -> recipes.Recipe:
    return recipes.load("tiny", overrides)


def test_the_benchmark_model_has_its_published_figures() -> None:
    plan = model.plan_model(recipes.load("exxact-8b", ["model.weights=random"]))
    assert plan.facts.parameters == 8_030_261_248 + 6_815_744
    assert plan.facts.lora_parameters == 6_815_744
    assert plan.facts.flops_per_token == pytest.approx(30.46e9, rel=1e-4)
    assert plan.weights_bytes == 8_030_261_248 * 2 + 6_815_744 * 16


def test_flops_by_hand() -> None:
    assert lora_flops_per_token(100, 10, 8, 4, 2) == 4 * 100 + 6 * 10 + 6 * 8 * 4 * 2


def test_facts_of_a_built_model_agree_with_its_plan() -> None:
    recipe = tiny()
    plan = model.plan_model(recipe)
    built = model.load_model(plan, recipe, torch.device("cpu"))
    assert model_facts(built, recipe.data.sequence_length) == plan.facts
    assert plan.facts.lora_parameters == sum(p.numel() for p in built.parameters() if p.requires_grad)


def test_tied_heads_count_as_a_product_but_once_as_weights() -> None:
    facts = model.plan_model(recipes.load("demo", ["model.weights=random", "lora.targets=[q_proj, v_proj]"])).facts
    assert facts.parameters == 134_515_008 + 921_600
    layers, width, inner, vocabulary = 30, 576, 1536, 49152
    products = layers * (2 * width * width + 2 * width * 192 + 3 * width * inner) + vocabulary * width
    assert facts.flops_per_token == lora_flops_per_token(products, 921_600, 128, width, layers)


def test_adapters_are_fp32_on_a_bf16_base_and_alone_trainable() -> None:
    recipe = tiny("model.dtype=bfloat16")
    built = model.load_model(model.plan_model(recipe), recipe, torch.device("cpu"))
    for name, parameter in built.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    rope = built.base_model.model.model.rotary_emb.inv_freq
    assert rope.dtype == torch.float32
    assert rope[0] == 1.0
    assert rope[1] == pytest.approx(10000.0 ** (-2 / 16))


def test_random_weights_are_seeded() -> None:
    first, second, other = (
        model.load_model(model.plan_model(r), r, torch.device("cpu")) for r in (tiny(), tiny(), tiny("train.seed=1"))
    )
    weight = "base_model.model.lm_head.weight"
    assert torch.equal(first.get_parameter(weight), second.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), other.get_parameter(weight))
    assert first.get_parameter(weight).std() == pytest.approx(0.02, rel=0.05)


def test_a_wrong_target_lists_the_right_ones() -> None:
    with pytest.raises(RecipeError) as error:
        model.plan_model(tiny("lora.targets=[q_proj, value]"))
    assert error.value.message == "lora.targets: tiny-llama has no linear layer 'value'"
    assert "its linear layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in (
        error.value.hint or ""
    )


def test_a_local_folder_with_tokenizer(tmp_path: Path) -> None:
    recipe = tiny()
    base = model.load_model(model.plan_model(recipe), recipe, torch.device("cpu")).unload()
    base.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    recipe = tiny(f"model.name={tmp_path}", "model.weights=pretrained")
    plan = model.plan_model(recipe)
    loaded = model.load_model(plan, recipe, torch.device("cpu"))
    weight = "base_model.model.lm_head.weight"
    assert torch.equal(loaded.get_parameter(weight), base.get_parameter("lm_head.weight"))
    assert model.load_tokenizer(plan).chat_template == byte_tokenizer().chat_template
    shape = model.plan_model(tiny(f"model.name={tmp_path}"))  # random weights of that shape
    assert shape.files is None
    assert shape.facts == plan.facts


def test_models_that_are_nowhere_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for name, weights, says in (
        ("someone/no-such-model", "pretrained", "not on this machine and could not be fetched"),
        ("someone/no-such-model", "random", "shape of 'someone/no-such-model' is not known"),
        (str(tmp_path / "gone"), "pretrained", "no such folder"),
        (str(tmp_path / "empty"), "pretrained", "no config.json"),
        (str(tmp_path / "gone.gguf"), "pretrained", "no such file"),
        ("tiny-llama", "pretrained", "a shape without weights"),
    ):
        started = time.monotonic()
        with pytest.raises(ModelNotFound, match=says) as error:
            model.plan_model(tiny(f"model.name={name}", f"model.weights={weights}"))
        assert time.monotonic() - started < 10
        assert error.value.hint or "no such file" in says


def test_without_a_network_the_question_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # TEST-NET: answers nobody
    started = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - started < 5


def test_the_hub_cache_is_found_only_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--one" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").touch()
    assert hub.cached_snapshot("some/one") is None
    (snapshot / "model-2.safetensors").touch()
    assert hub.cached_snapshot("some/one") == snapshot
    assert hub.find("some/one").folder == snapshot


def test_too_little_gpu_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model.plan_model(recipes.load("exxact-8b", ["model.weights=random"]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(3.2 * 2**30), 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX 4500")
    with pytest.raises(NoSuitableGpu, match=r"needs 15.1 GiB .* NVIDIA RTX 4500 \(cuda:1\) has 3.2 of 24.0 GiB free"):
        model.check_memory(plan, torch.device("cuda", 1))


def test_every_shape_of_the_table_builds() -> None:
    for name in model._table():
        config, folder = model._shape(name)
        assert folder is None
        with torch.device("meta"):
            config.num_hidden_layers = 1
            AutoModelForCausalLM.from_config(config)
