"""A model's own Python code is never run, and never asked about: one sentence says so."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import lorawatch, sql

import lorawatch as package
from lorawatch.errors import ModelNotFound
from lorawatch.recipe import loading
from lorawatch.training import model as models
from lorawatch.training.tokenization import byte_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model's folder whose code would leave a file behind."""
    folder = tmp_path / "model"
    tiny = loading.load("tiny")
    models.load_base(models.plan_model(tiny), tiny, CPU).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    mark = tmp_path / "it ran"
    body = f"open({str(mark)!r}, 'w').close()\n"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(
            f"{body}from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
            "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{body}def generate(model, **more):\n    return None\n")
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(autouse=True)
def an_eager_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers yes to whatever transformers asks."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


CONFIG = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_an_architecture_of_the_models_own_is_refused_in_one_sentence(hostile: Path, weights: str) -> None:
    change(hostile / "config.json", auto_map=CONFIG, model_type="own")
    recipe = loading.load("tiny", [f"model.name={hostile}", f"model.weights={weights}"])
    with pytest.raises(ModelNotFound, match="runs no such code") as raised:
        models.plan_model(recipe)
    assert "part of transformers" in (raised.value.hint or "")
    assert not (hostile.parent / "it ran").exists()


def test_a_tokenizers_code_is_not_run(hostile: Path) -> None:
    change(
        hostile / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
        tokenizer_class="OwnTokenizer",
    )  # fmt: skip
    recipe = loading.load("tiny", [f"model.name={hostile}", "model.weights=pretrained"])
    plan = models.plan_model(recipe)
    try:
        tokenizer = models.load_tokenizer(plan)
    except ModelNotFound as error:
        assert "runs no such code" in error.message
    else:
        assert type(tokenizer).__module__.startswith("transformers.")
    assert not (hostile.parent / "it ran").exists()


@pytest.mark.parametrize("wrong", [{"auto_map": {"AutoTokenizer": "x"}}, {"auto_map": 3}, {"tokenizer_class": 3}])
def test_a_broken_tokenizer_config_is_one_message(hostile: Path, wrong: dict[str, object]) -> None:
    change(hostile / "tokenizer_config.json", **wrong)
    recipe = loading.load("tiny", [f"model.name={hostile}", "model.weights=pretrained"])
    try:
        models.load_tokenizer(models.plan_model(recipe))
    except ModelNotFound as error:
        assert str(hostile) in error.message


def test_a_known_architecture_is_the_librarys_own_whatever_lies_beside_it(hostile: Path) -> None:
    change(hostile / "config.json", auto_map=CONFIG)
    recipe = loading.load("tiny", [f"model.name={hostile}", "model.weights=pretrained"])
    base = models.load_base(models.plan_model(recipe), recipe, CPU)
    assert type(base).__module__.startswith("transformers.")
    assert not (hostile.parent / "it ran").exists()


def test_a_run_on_such_a_model_fails_with_status_3_and_asks_nothing(hostile: Path, lorawatch_home: Path) -> None:
    change(hostile / "config.json", auto_map=CONFIG, model_type="own")
    settings = ["--set", f"model.name={hostile}", "--set", "model.weights=pretrained", "--gpus", "cpu:1"]
    done = lorawatch("--record", "tiny", *settings)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "runs no such code" in done.stdout
    assert "y/N" not in done.stdout + done.stderr
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("failed",)]
    assert not (hostile.parent / "it ran").exists()


def test_every_load_goes_through_the_one_place_that_runs_no_code() -> None:
    root = Path(package.__file__).parent
    loads = re.compile(r"\bAuto\w+\.from_(?:pretrained|config)\b")
    modules = {p.name for p in root.rglob("*.py") if loads.search(p.read_text(encoding="utf-8"))}
    assert modules == {"safe_loading.py"}
    assert "trust_remote_code=True" not in "".join(p.read_text(encoding="utf-8") for p in root.rglob("*.py"))
    assert sys.modules.get("transformers_modules") is None
