"""Merged weights: rounded once, read back and compared before they appear, and never in the place of something else."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.recipe import loading
from lorawatch.run.adapters import BestAdapter
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.requests import MergeRequest
from lorawatch.training import merge as merging
from lorawatch.training import model as models
from lorawatch.training.adapter_saver import save_adapter
from lorawatch.training.merge import check_disk, check_folder, merge, readable_config
from lorawatch.training.tokenization import byte_tokenizer

CPU = torch.device("cpu")


def a_run(folder: Path, *overrides: str, scale: float = 0.05) -> tuple[RunDir, models.PeftModel]:
    """A run with an adapter as training would have left it, and its model."""
    base = folder / "base"
    if not base.exists():
        tiny = loading.load("tiny")
        models.load_base(models.plan_model(tiny), tiny, CPU).save_pretrained(base)
        byte_tokenizer().save_pretrained(base)
    recipe = loading.load("tiny", [f"model.name={base}", "model.weights=pretrained", *overrides])
    run = RunDir.create(
        RunInfo(
            run_id="", name="tiny", created_at=time.time(), host="h", user="u", world_size=1, device="cpu",
            recipe=recipe.to_dict(),
        )
    )  # fmt: skip
    torch.manual_seed(1)
    model = models.load_model(models.plan_model(recipe), recipe, CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * scale
    save_adapter(run.adapter, model, None)
    return run, model


def asked(folder: Path, **more: object) -> MergeRequest:
    return MergeRequest(folder=str(folder), **more)  # type: ignore[arg-type]


def test_each_weight_is_rounded_once(tmp_path: Path) -> None:
    run, model = a_run(tmp_path, "model.dtype=bfloat16")
    report = merge(run, asked(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8 / 4)
    exact = layer.base_layer.weight.float() + product
    assert torch.equal(merged.model.layers[1].self_attn.v_proj.weight, exact.to(torch.bfloat16))
    assert torch.equal(merged.lm_head.weight, model.base_model.model.lm_head.weight)
    assert report.relative_difference < report.allowed_difference == 0.125
    assert report.parameters == 115_008
    assert report.unpacked_from is None


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_all_options_merge_in_any_format(dtype: str | None, tmp_path: Path) -> None:
    options = ("lora.use_dora=true", "lora.use_rslora=true", "lora.targets=all-linear")
    run, _ = a_run(tmp_path, *options)
    report = merge(run, asked(tmp_path / "merged", dtype=dtype))
    assert report.dtype == (dtype or "float32")
    assert report.relative_difference < (1e-5 if report.dtype == "float32" else 0.01)
    assert report.adapter_difference > 0.1
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == report.dtype
    assert config["rope_theta"] == 10000.0
    assert set(report.files) == {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(report.files)
    template = (tmp_path / "base" / "chat_template.jinja").read_bytes()
    assert (tmp_path / "merged" / "chat_template.jinja").read_bytes() == template


def test_the_adapter_that_is_asked_for_is_merged(tmp_path: Path) -> None:
    run, model = a_run(tmp_path)
    best = BestAdapter(step=40, loss=1.25, label_tokens=9, attempt=0, at=0.0, data="")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = -parameter
    save_adapter(run.best, model, None, best)
    merged = {}
    for which in ("last", "best"):
        report = merge(run, asked(tmp_path / which, adapter=which))
        assert (report.adapter, report.step) == (which, 40 if which == "best" else None)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / which)
        merged[which] = model.model.layers[0].self_attn.q_proj.weight
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(merged["last"], base)
    torch.testing.assert_close(merged["last"] - base, base - merged["best"])
    with pytest.raises(UsageError, match="is what the merged weights are made from"):
        merge(run, asked(run.best, force=True))


def test_weights_that_compute_something_else_never_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = a_run(tmp_path, "lora.targets=all-linear", scale=0.3)
    monkeypatch.setattr(merging, "_merged", lambda model, dtype, run: model.unload())  # the adapter is forgotten
    with pytest.raises(LorawatchError, match="do not compute what base and adapter compute: their logits differ by"):
        merge(run, asked(tmp_path / "merged"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["base"]


def test_an_adapter_that_is_not_made_of_numbers_is_refused(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path, scale=math.nan)
    with pytest.raises(LorawatchError, match="weights that are not numbers: its training diverged"):
        merge(run, asked(tmp_path / "merged"))
    run, _ = a_run(tmp_path, scale=1e6)
    with pytest.raises(LorawatchError, match="has values that float16 cannot hold"):
        merge(run, asked(tmp_path / "merged", dtype="float16"))
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    config, _ = models._shape("tiny-llama")
    config.hidden_size = 32
    shutil.rmtree(tmp_path / "base")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(LorawatchError, match="does not load: ") as caught:
        merge(run, asked(tmp_path / "merged"))
    assert "is the base model still the one it was trained on?" in (caught.value.hint or "")


def test_a_folder_is_replaced_only_where_it_is_a_models_and_somebody_insists(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    merged = tmp_path / "merged"
    merged.mkdir()
    merge(run, asked(merged))  # an empty folder is as good as none
    (merged / "old.txt").touch()
    with pytest.raises(UsageError, match="is not empty"):
        merge(run, asked(merged))
    assert (merged / "old.txt").exists()
    merge(run, asked(merged, force=True))
    assert not (merged / "old.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["base", "merged"]
    with pytest.raises(UsageError, match="is what the merged weights are made from"):
        merge(run, asked(tmp_path / "base", force=True))
    with pytest.raises(UsageError, match="is what the merged weights are made from"):
        merge(run, asked(run.adapter, force=True))


@pytest.mark.parametrize("entry", ["thesis.tex", "folder"])
def test_what_is_no_model_is_never_replaced(entry: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    check_folder(tmp_path, force=True, sources=[])
    (tmp_path / entry).mkdir() if entry == "folder" else (tmp_path / entry).touch()
    with pytest.raises(UsageError, match=f"holds other things than a model: .*{entry}"):
        check_folder(tmp_path, force=True, sources=[])
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "config.json", force=True, sources=[])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(UsageError, match="holds other things than a model"):
        check_folder(tmp_path / "notes", force=True, sources=[])


def test_too_small_a_disk_is_told_before_anything_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    check_disk(tmp_path / "a" / "b", 2 * 2**30)
    with pytest.raises(LorawatchError) as caught:
        check_disk(tmp_path / "a" / "b", 16 * 2**30)
    assert caught.value.message == f"the merged weights take 16.1 GiB, and the disk of {tmp_path} has 3.0 GiB free"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "locked").touch()  # root may write anywhere but below a file
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
    run, _ = a_run(tmp_path)
    with pytest.raises(LorawatchError, match="locked/merged cannot be written"):
        merge(run, asked(tmp_path / "locked" / "merged"))


def test_a_stretched_rotary_embedding_is_said_in_both_ways() -> None:
    stretch = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = readable_config({"rope_parameters": {**stretch, "rope_theta": 500000.0}}, "bfloat16")
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == stretch
    assert AutoConfig.for_model("llama", **config).rope_parameters == {**stretch, "rope_theta": 500000.0}
    older = {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float16"}  # an author's own file
    assert readable_config(older, "float32") == {**older, "torch_dtype": "float32", "dtype": "float32"}
