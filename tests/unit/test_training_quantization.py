"""What is said before weights are loaded, where a device cannot keep them as a recipe asks."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorawatch.errors import MissingDependency, NoSuitableGpu, RecipeError
from lorawatch.recipe import loading, schema
from lorawatch.training import fp8, quantization
from lorawatch.training import model as models

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def tiny(*overrides: str) -> schema.Recipe:
    return loading.load("tiny", ["model.dtype=bfloat16", *overrides])


def test_nothing_is_asked_of_a_device_that_quantizes_nothing() -> None:
    quantization.check(tiny(), CPU)


def test_fp8_on_the_cpu_is_refused() -> None:
    with pytest.raises(NoSuitableGpu, match="this run is on the CPU") as error:
        quantization.check(tiny("model.quantization=fp8"), CPU)
    assert error.value.hint == "set model.quantization to none, or to nf4 to save memory"


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "NVIDIA A100-SXM4-80GB"), ((8, 6), "NVIDIA RTX A6000")])
def test_fp8_on_a_card_without_it_is_refused_with_what_has_it(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    with pytest.raises(NoSuitableGpu) as error:
        quantization.check(tiny("model.quantization=fp8"), GPU)
    words = f"{capability[0]}.{capability[1]}; it begins with 8.9: Ada, Hopper, Blackwell"
    assert error.value.message == (
        f"model.quantization is fp8, and {name} has no FP8 arithmetic (compute capability {words})"
    )


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0), (12, 0)])
def test_fp8_on_a_card_that_has_it_is_not(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(fp8, "check", lambda device: None)
    quantization.check(tiny("model.quantization=fp8"), GPU)


def test_fp8_of_which_torch_lacks_the_product_is_refused_with_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(device: torch.device) -> None:
        raise RuntimeError("Rowwise scaling is not supported\nsomewhere in C++")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 5090")
    monkeypatch.setattr(fp8, "check", lacks)
    with pytest.raises(NoSuitableGpu, match="its rows on NVIDIA GeForce RTX 5090: Rowwise scaling is not supported"):
        quantization.check(tiny("model.quantization=fp8"), GPU)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_fp8_over_another_format_than_bfloat16_is_refused_when_the_recipe_is_read(dtype: str) -> None:
    with pytest.raises(RecipeError, match=f"model.dtype is '{dtype}'") as error:
        tiny("model.quantization=fp8", f"model.dtype={dtype}")
    assert error.value.hint == "set model.dtype to bfloat16"


def test_fp8_with_dora_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError, match=r"lora.use_dora is true, but model.quantization is 'fp8'"):
        tiny("model.quantization=fp8", "lora.use_dora=true")
    tiny("model.quantization=nf4", "lora.use_dora=true")


def absent(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_nf4_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(
        MissingDependency, match="the package bitsandbytes computes, and that is not installed"
    ) as error:
        quantization.check(tiny("model.quantization=nf4"), CPU)
    assert error.value.hint == "pip install 'lorawatch[qlora]'"


def test_nf4_with_a_package_that_would_end_the_process_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.48.2")
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes 0\.48\.2 is older than 0\.49") as error:
        quantization.check(tiny("model.quantization=nf4"), CPU)
    assert error.value.hint == "pip install 'lorawatch[qlora]' --upgrade"


def test_nf4_with_a_package_that_does_not_work_names_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("\nlibcusparse.so.11: cannot open shared object file\nmore")

    modules = {"bitsandbytes": types.ModuleType("bitsandbytes"), "bitsandbytes.nn": types.ModuleType("bitsandbytes.nn")}
    vars(modules["bitsandbytes.nn"])["Params4bit"] = Broken
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49.2")
    with pytest.raises(MissingDependency) as error:
        quantization.check(tiny("model.quantization=nf4"), CPU)
    assert error.value.message == (
        f"model.quantization is nf4, but bitsandbytes 0.49.2 does not work on the CPU with torch {torch.__version__}: "
        "libcusparse.so.11: cannot open shared object file"
    )
    assert "python -m bitsandbytes" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("stored", "how", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", "name the model that they were made from"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4", "name the model"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", "to nf4"),
    ],
)
def test_weights_that_are_stored_quantized_are_told_from_plain_ones(
    stored: dict[str, Any], how: str, hint: str, tmp_path: Path
) -> None:
    config, _ = models._shape("tiny-llama")
    config.quantization_config = stored
    config.save_pretrained(tmp_path)
    asked = (f"model.name={tmp_path}", "model.weights=pretrained")
    with pytest.raises(RecipeError) as error:
        models.plan_model(tiny(*asked))
    assert f"are stored quantized ({how}), and model.quantization is none" in error.value.message
    assert hint in (error.value.hint or "")
    if how == "nf4":
        assert models.plan_model(tiny(*asked, "model.quantization=nf4")).stored_nf4


@pytest.mark.parametrize("quantized", ["nf4", "fp8"])
def test_facts_of_a_quantized_model_are_the_plain_ones(quantized: str) -> None:
    plain, plan = models.plan_model(tiny()), models.plan_model(tiny(f"model.quantization={quantized}"))
    # An FP8 step has no one precision, and so no one peak to be measured by.
    assert replace(plan.facts, dtype=None) == replace(plain.facts, dtype=None)
    assert plan.facts.dtype == ("float8_e4m3fn" if quantized == "fp8" else plain.facts.dtype)
    assert (plan.base_bytes < plain.base_bytes) == (quantized == "nf4")
