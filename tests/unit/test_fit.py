"""From a recipe to what the memory estimate is made of, without torch and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorawatch.analysis.memory import GIB, estimate
from lorawatch.analysis.shape import LoraShape, ModelShape
from lorawatch.errors import LorawatchError, ModelNotFound, RecipeError
from lorawatch.models import memory, shapes
from lorawatch.recipe import loading


def test_a_recipe_gives_all_that_memory_depends_on() -> None:
    recipe = loading.load(
        "exxact-8b",
        [
            "lora.rank=8", "lora.dropout=0.1", "lora.targets=[self_attn.q_proj, down_proj]", "data.sequence_length=1024",
            "train.batch_size_per_gpu=4", "train.gradient_accumulation=3", "train.gradient_checkpointing=true",
        ],
    )  # fmt: skip
    work = memory.workload(recipe, world_size=2)
    assert work.shape == ModelShape(128256, 4096, 14336, 32, 32, 8, 128)
    assert work.lora == LoraShape(8, ("q_proj", "down_proj"), 0.1)
    assert (work.batch, work.sequence_length, work.dtype_bytes) == (4, 1024, 2)
    assert (work.gradient_checkpointing, work.gradient_accumulation, work.world_size) == (True, 3, 2)
    assert not work.padded  # random tokens fill every row


def test_rows_of_a_data_set_differ_in_length() -> None:
    work = memory.workload(loading.load("demo"))
    assert (work.padded, work.dtype_bytes, work.shape.tied) == (True, 4, True)
    assert not memory.workload(loading.load("demo", ["train.batch_size_per_gpu=1"])).padded


def test_packed_rows_are_full_but_the_reference_engine_masks_them() -> None:
    packed = ("data.packing=true", "train.batch_size_per_gpu=1")
    assert memory.workload(loading.load("demo", packed)).padded
    assert not memory.workload(loading.load("demo", [*packed, "train.engine=fast"])).padded
    assert not memory.workload(loading.load("exxact-8b", packed)).padded  # random tokens


def test_every_built_in_shape_and_its_aliases_can_be_estimated() -> None:
    assert shapes.model_shape("meta-llama/Llama-3.1-70B-Instruct").parameters == 70_553_706_496
    assert shapes.model_shape("tiny-llama").layers == 2
    for name in loading.builtin_names():
        assert estimate(memory.workload(loading.load(name))).device_bytes > 0


def test_a_folder_and_the_hubs_cache_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "qwen2", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    cached = tmp_path / "hub" / "models--me--small" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(config))
    (cached / "model.safetensors").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    wanted = ModelShape(1000, 64, 128, 2, 4, 2, 16, tied=True, qkv_bias=True)
    assert shapes.model_shape(str(cached)) == shapes.model_shape("me/small") == wanted


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody/nothing", "no config.json is on this machine"),
        ("model.gguf", "a .gguf file is not read before the start"),
    ],
)
def test_an_unknown_shape_is_told_with_what_can_be_named(name: str, reason: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        shapes.model_shape(name)
    assert caught.value.message == f"the shape of {name!r} is not known here: {reason}"
    assert "tiny-llama" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"model_type": "gpt2"}', "model_type 'gpt2' is none of llama, mistral, qwen2, qwen3"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size is 'wide', not a whole number"),
        ("[]", "its config.json is not a mapping"),
        ("{", "config.json: Expecting"),
    ],
)
def test_a_config_of_no_use_is_told(config: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelNotFound) as caught:
        shapes.model_shape(str(tmp_path))
    assert reason in caught.value.message


def test_a_target_that_no_layer_has_is_told() -> None:
    with pytest.raises(RecipeError, match=r"lora.targets: 'qproj' is none of q_proj, k_proj"):
        memory.workload(loading.load("tiny", ["lora.targets=[qproj]"]))


def test_all_linear_is_every_layer_by_name() -> None:
    listed = loading.load("tiny", ["lora.targets=[down_proj, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj]"])
    every = loading.load("tiny", ["lora.targets=all-linear"])
    assert set(memory.workload(every).lora.targets) == set(memory.workload(listed).lora.targets)
    assert estimate(memory.workload(every)) == estimate(memory.workload(listed))


def test_what_is_not_modelled_is_told_instead_of_a_wrong_number() -> None:
    assert memory.workload(loading.load("tiny", ["lora.use_dora=true"])).lora.use_dora
    with pytest.raises(LorawatchError, match="the memory of DoRA over NF4 weights is not modelled"):
        memory.workload(loading.load("tiny", ["lora.use_dora=true", "model.quantization=nf4"]))


def test_where_memory_ran_out_what_would_fit_is_told_and_less_where_the_estimate_has_it_fit() -> None:
    recipe = loading.load("exxact-8b", ["train.batch_size_per_gpu=8"])
    advice_text = memory.shortage(recipe, 1, 24 * GIB)
    assert advice_text.startswith("the run needs about 42.6 GiB, and 24.0 GiB are available; what would fit: ")
    assert "train.batch_size_per_gpu 1 instead of 8: " in advice_text
    assert "model.quantization nf4" in advice_text
    again = memory.shortage(recipe, 1, 80 * GIB)
    assert "80.0 GiB are available; what needs less: train.batch_size_per_gpu 6 instead of 8: " in again
    assert "a larger GPU or a smaller model" in memory.shortage(recipe, 1, 4 * GIB)


def test_where_the_shape_is_unknown_the_advice_is_general(tmp_path: Path) -> None:
    recipe = loading.load("tiny", [f"model.name={tmp_path}/none"])
    assert memory.shortage(recipe, 1, 24 * GIB) == (
        "lower train.batch_size_per_gpu or data.sequence_length, or set train.gradient_checkpointing to true"
    )


def test_no_heavy_library_is_loaded() -> None:
    program = (
        "import sys; from lorawatch.models import memory; from lorawatch.recipe import loading; "
        "memory.workload(loading.load('exxact-8b')); "
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
