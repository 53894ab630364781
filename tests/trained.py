"""A training of the tiny model in this process, by one rank: what the real ranks do, in a fraction of their time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorawatch.recipe import loading, schema
from lorawatch.run import checkpoints
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Evaluation, Event, Step
from lorawatch.training import model as models
from lorawatch.training.data import build_datasets
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.tokenization import byte_tokenizer
from lorawatch.training.trainer import train

Curve = dict[int, tuple[float | None, float | None, float | None, int | None]]


class Trained:
    """A run in this process, of one rank; each call is an attempt."""

    def __init__(self, *overrides: str) -> None:
        self.recipe = loading.load("tiny", [*overrides, "launch.gpus=cpu:1"])
        self.run = RunDir.create(
            RunInfo(run_id="", name="tiny", created_at=time.time(), host="h", user="u", world_size=1, device="cpu")
        )
        self.attempt = -1

    def again(self, *, after: int | None = None) -> Curve:
        """Train; loss, gradient norm, learning rate and label tokens of this attempt's steps."""
        self.attempt += 1
        rank_info = RankInfo(attempt=self.attempt, resumed=None if after is None else (after, self.attempt))
        observer = Observer(self.run, rank_info).start()
        try:
            train(self.run, self.recipe, rank_info, observer, "cpu")
        finally:
            observer.close()
        return {s.step: (s.loss, s.grad_norm, s.learning_rate, s.label_tokens) for s in self.steps}

    def lines(self, kind: type[Any] = object) -> list[Any]:
        """The journal's lines of a kind."""
        return [line for line in JournalTail(self.run.rank_journal(0)).records() if isinstance(line, kind)]

    def events(self, kind: str) -> list[Event]:
        return [e for e in self.lines(Event) if e.kind == kind]

    @property
    def steps(self) -> list[Step]:
        """This attempt's."""
        return [s for s in self.lines(Step) if s.attempt == self.attempt]

    @property
    def evaluations(self) -> dict[int, float | None]:
        """The loss of this attempt's evaluations, by step."""
        return {line.step: line.loss for line in self.lines(Evaluation) if line.attempt == self.attempt}

    @property
    def saved(self) -> list[int]:
        return sorted(checkpoints.step_of(f) for f in checkpoints.folders(self.run.checkpoints))


def rows(path: Path, number: int) -> Path:
    path.write_text(
        "".join(json.dumps({"prompt": "x" * (i % 7), "completion": "yes " * (1 + i % 4)}) + "\n" for i in range(number))
    )
    return path


def loss_by_hand(recipe: schema.Recipe, adapter: Path) -> tuple[float, int]:
    """Mean over all label tokens of the held-out rows, a row at a time, with an adapter's weights; and their number."""
    plan = models.plan_model(recipe)
    model = models.load_model(plan, recipe, torch.device("cpu"))
    weights = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name.replace(".default", "")])
    held = build_datasets(recipe, byte_tokenizer(), plan.vocabulary, 1).evaluation
    assert held is not None
    model.eval()
    total, count = 0.0, 0
    for item in (held[n] for n in range(len(held))):
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=item["input_ids"][None]).logits[0, :-1].double(), -1)
        for position, wanted in enumerate(item["labels"][1:].tolist()):
            if wanted != -100:
                total -= float(scores[position, wanted])
                count += 1
    return total / count, count
