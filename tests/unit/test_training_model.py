"""Finding, sizing and building models, without a network."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPT2Config

from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.analysis.shape import LINEARS, LoraShape
from lorawatch.errors import ModelNotFound, NoSuitableGpu, RecipeError
from lorawatch.models import hub, shapes
from lorawatch.recipe import loading, schema
from lorawatch.training import model
from lorawatch.training.facts import context_length, model_facts, rocm_uuid
from lorawatch.training.tokenization import byte_tokenizer


def tiny(*overrides: str) -> schema.Recipe:
    return loading.load("tiny", overrides)


def test_the_benchmark_model_has_its_published_figures() -> None:
    plan = model.plan_model(loading.load("exxact-8b", ["model.weights=random"]))
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
    facts = model.plan_model(loading.load("demo", ["model.weights=random", "lora.targets=[q_proj, v_proj]"])).facts
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


def one_step(recipe: schema.Recipe) -> tuple[PeftModel, float]:
    """The recipe's model after one optimizer step on random tokens, and the step's loss."""
    torch.manual_seed(0)
    built = model.load_model(model.plan_model(recipe), recipe, torch.device("cpu"))
    if recipe.train.gradient_checkpointing:
        built.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in built.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    ids = torch.randint(320, (1, recipe.data.sequence_length))
    loss = built(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    return built, float(loss.detach())


NAMES = "lora.targets=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"


def test_all_linear_layers_are_those_that_peft_takes() -> None:
    recipe = tiny("lora.targets=all-linear")
    built, loss = one_step(recipe)
    plan = model.plan_model(recipe)
    assert model_facts(built, 32) == plan.facts == model.plan_model(tiny(NAMES)).facts
    inputs_and_outputs = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)  # q, o; k, v; the MLP's
    assert plan.facts.lora_parameters == 2 * 4 * inputs_and_outputs == 8192
    assert LoraShape(4, LINEARS).parameters(shapes.model_shape("tiny-llama")) == 8192
    adapted = {name.split(".lora_B")[0].rpartition(".")[2] for name, _ in built.named_modules() if ".lora_B" in name}
    assert adapted == set(LINEARS)
    assert loss == pytest.approx(math.log(320), abs=0.3)
    assert all(p.grad is not None for p in built.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dora_has_a_magnitude_an_output_in_fp32_and_trains_it(dtype: str) -> None:
    recipe = tiny("lora.use_dora=true", f"model.dtype={dtype}")
    plain, plan = model.plan_model(tiny(f"model.dtype={dtype}")), model.plan_model(recipe)
    assert plain.facts.lora_parameters is not None
    magnitudes = 2 * (64 + 32)  # of q_proj and v_proj, in two layers
    assert plan.facts.lora_parameters == plain.facts.lora_parameters + magnitudes
    assert plan.facts.flops_per_token == plain.facts.flops_per_token  # no product is taken with a magnitude
    before = model.load_model(plan, recipe, torch.device("cpu"))
    assert model_facts(before, 32) == plan.facts
    dora = LoraShape(4, use_dora=True)
    assert dora.parameters(shapes.model_shape("tiny-llama")) == plan.facts.lora_parameters
    after, _ = one_step(recipe)
    old = {n: p for n, p in before.named_parameters() if "magnitude" in n}
    new = {n: p for n, p in after.named_parameters() if "magnitude" in n}
    assert len(old) == len(new) == 4
    for name, parameter in new.items():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, old[name]), name


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    recipe = tiny("lora.use_rslora=true", "lora.rank=16", "lora.alpha=8")
    built, _ = one_step(recipe)
    assert {m.scaling["default"] for m in built.modules() if isinstance(m, LoraLayer)} == {8 / 4}
    assert built.peft_config["default"].use_rslora
    assert any(p.grad is not None and bool(p.grad.any()) for p in built.parameters())
    assert model.plan_model(recipe).facts == model.plan_model(tiny("lora.rank=16")).facts


def test_all_linear_in_a_list_is_told_how_it_is_written() -> None:
    with pytest.raises(RecipeError) as error:
        model.plan_model(tiny("lora.targets=[all-linear]"))
    assert error.value.message == "lora.targets: tiny-llama has no linear layer 'all-linear'"
    assert (error.value.hint or "").startswith("for all of them write lora.targets: all-linear, without a list; its ")


def test_layers_that_keep_their_weight_the_other_way_round_are_measured_right() -> None:
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    with torch.device("meta"):
        layers = {name: sizes for name, *sizes in model.linear_layers(AutoModelForCausalLM.from_config(config))}
    assert layers["transformer.h.0.attn.c_attn"] == [8, 24]
    assert layers["transformer.h.0.mlp.c_proj"] == [32, 8]
    assert "lm_head" not in layers


def test_eight_thousand_tokens_in_one_step() -> None:
    recipe = tiny("data.sequence_length=8192", "train.gradient_checkpointing=true", "model.dtype=bfloat16")
    _, loss = one_step(recipe)
    assert loss == pytest.approx(math.log(320), abs=0.3)


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_sequences_longer_than_the_context_are_refused_with_the_limit(weights: str, tmp_path: Path) -> None:
    config, _ = model._shape("tiny-llama")
    config.max_position_embeddings = 100
    config.save_pretrained(tmp_path)  # a config alone: weights that are never read need not be there
    recipe = tiny(f"model.name={tmp_path}", f"model.weights={weights}", "data.sequence_length=101")
    with pytest.raises(RecipeError) as error:
        model.plan_model(recipe)
    assert error.value.message == f"data.sequence_length is 101, but {tmp_path} has a context of 100 tokens"
    assert "set data.sequence_length to 100 or less" in (error.value.hint or "")
    model.plan_model(tiny(f"model.name={tmp_path}", f"model.weights={weights}", "data.sequence_length=100"))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "linear", "factor": 4.0}, 4000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}, 1000),  # raised already
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 125}, 1000),
    ],
)
def test_a_stretched_context_is_as_long_as_it_was_stretched(rope: dict[str, Any], limit: int) -> None:
    assert context_length(SimpleNamespace(max_position_embeddings=1000, rope_parameters=rope)) == limit
    assert context_length(SimpleNamespace(rope_parameters=rope)) is None


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
        assert time.monotonic() - started < 60
        assert error.value.hint or "no such file" in says


def test_without_a_network_the_question_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # TEST-NET: answers nobody
    started = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - started < 30


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
    plan = model.plan_model(loading.load("exxact-8b", ["model.weights=random"]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(3.2 * 2**30), 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA RTX 4500")
    with pytest.raises(NoSuitableGpu, match=r"needs 15.1 GiB .* NVIDIA RTX 4500 \(cuda:1\) has 3.2 of 24.0 GiB free"):
        model.check_memory(plan, torch.device("cuda", 1))
    with pytest.raises(NoSuitableGpu) as error:
        model.check_memory(plan, torch.device("cuda", 1), lambda: "what would fit")
    assert error.value.hint == "what would fit"


def test_every_shape_of_the_table_builds() -> None:
    for name in shapes.builtin_shapes():
        config, folder = model._shape(name)
        assert folder is None
        with torch.device("meta"):
            config.num_hidden_layers = 1
            AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        ("64653832-3837-3330-3064-613337633732", "GPU-de8287300da37c72"),
        ("30303030-3031-3937-3030-303030303030", "GPU-0000019700000000"),  # torch on a Radeon 8060S
        ("de828730-0da3-7c72-0000-000000000000", None),
        ("", None),
    ],
)
def test_a_rank_names_its_amd_gpu_as_the_driver_does(text: str, uuid: str | None) -> None:
    assert rocm_uuid(text) == uuid
