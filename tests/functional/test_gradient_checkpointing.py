"""`train.gradient_checkpointing`: activations are computed twice, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, journal_steps, run_json, the_run
from trained import Trained
from transformers import TrainerCallback, set_seed
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lorawatch.recipe import loading
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collator import Collator
from lorawatch.training.data import build_training_data
from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

CPU = torch.device("cpu")


class _Norms(TrainerCallback):
    """The gradients' size before each optimizer step."""

    def __init__(self, model: Any) -> None:
        self.model, self.norms = model, list[float]()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.requires_grad]
        assert all(g is not None for g in gradients)
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


def gradient_norms(folder: Path, *overrides: str) -> list[float]:
    recipe = loading.load("tiny", ["train.steps=3", "lora.dropout=0.1", *overrides])
    plan = models.plan_model(recipe)
    model = models.load_model(plan, recipe, CPU)
    set_seed(0)
    norms = _Norms(model)
    ReferenceTrainer(
        model=model, args=training_arguments(recipe, folder, CPU), train_dataset=build_training_data(recipe, None, 320, 1),
        data_collator=Collator(0, BatchCounts()), callbacks=[norms],
    ).train()  # fmt: skip
    return norms.norms


def test_every_layer_is_computed_again_and_the_gradients_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = LlamaDecoderLayer.forward
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda *args, **kw: calls.append(1) or forward(*args, **kw))
    plain = gradient_norms(tmp_path / "plain")
    assert len(calls) == 3 * 2  # steps × layers
    calls.clear()
    recomputed = gradient_norms(tmp_path / "recomputed", "train.gradient_checkpointing=true")
    assert len(calls) == 2 * 3 * 2
    assert recomputed == pytest.approx(plain, rel=1e-6)  # with the same dropout in both passes
    assert plain[0] > 0


def moves(losses: list[float]) -> bool:
    """Whether a curve goes somewhere, so that an equal one says something."""
    return losses[0] != pytest.approx(losses[-1], rel=1e-4)


def test_the_loss_curve_of_one_rank_is_that_of_a_run_without() -> None:
    curves = []
    for setting in ("false", "true"):
        run = Trained(f"train.gradient_checkpointing={setting}", "train.learning_rate=0.05")
        run.again()
        curves.append([s.loss for s in run.steps])
    assert len(curves[0]) == 10
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert moves(curves[0])


def test_the_loss_curve_of_two_ranks_is_that_of_a_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = []
    for setting in ("false", "true"):
        home = tmp_path / setting
        monkeypatch.setenv("LORAWATCH_HOME", str(home))
        wanted = f"train.gradient_checkpointing={setting}"
        code, _, err = run_json([*TINY, "--set", wanted, "--set", "train.learning_rate=0.05"])
        assert code == 0, err
        run = the_run(home)
        assert wanted.replace("=", ": ").removeprefix("train.") in run.recipe.read_text()
        curves.append([s["loss"] for s in journal_steps(run)])
    assert len(curves[0]) == 10
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert moves(curves[0])
