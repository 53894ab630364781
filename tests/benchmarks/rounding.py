"""What BF16 makes of a young adapter, eager and compiled: the loss of one adapter on the same batches, without a GPU.

    python tests/benchmarks/rounding.py [--steps 3] [--batches 16]

SmolLM2 on the demo's chats, its weights in BF16. An adapter is trained in FP32 for a few steps; then it is evaluated in FP32,
in BF16 under autocast operation by operation, as the reference engine computes on a GPU, and with the fast engine's compiled
layers, whose fused kernels keep FP32 between operations; and the model without it. What an adapter adds that has hardly begun
is near BF16's last digit, so that its loss hangs on how often is rounded. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import torch
from report import Report

from lorawatch.recipe import loading
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.data import build_training_data
from lorawatch.training.fast_engine import StaticCollator
from lorawatch.training.regions import Regions

ROWS, LENGTH, LEARNING_RATE = 4, 256, 2e-4


def loaded() -> tuple[Any, list[Any]]:
    """The demo's model in BF16, with an adapter that adds nothing yet; and its batches."""
    recipe = loading.load("demo", ["model.dtype=bfloat16"])
    plan = models.plan_model(recipe)
    plan.config.use_cache = False  # as the Trainer sets it
    tokenizer = models.load_tokenizer(plan)
    torch.manual_seed(0)
    model = models.load_model(plan, recipe, torch.device("cpu"))
    rows = build_training_data(recipe, tokenizer, plan.vocabulary, 1)
    collate = StaticCollator(tokenizer.pad_token_id or 0, BatchCounts(), ROWS, LENGTH)
    batches = [collate([rows[at + i] for i in range(ROWS)]) for at in range(0, len(rows) - ROWS, ROWS)]
    return model.train(), batches


def train(model: Any, batches: list[Any]) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def loss(model: Any, batches: list[Any], autocast: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return mean(float(model(**batch).loss.detach()) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batches", type=int, default=16)
    given = parser.parse_args()
    report = Report(f"an adapter of {given.steps} steps in BF16")
    exact, batches = loaded()
    exact.float()  # the same weights, computed with exactly
    judged = batches[given.steps : given.steps + given.batches]
    before = loss(exact, judged, autocast=False)
    train(exact, batches[: given.steps])
    after = loss(exact, judged, autocast=False)
    report.figure("loss in FP32 without the adapter", before, "")
    report.figure("loss in FP32 with it", after, "")
    rounded, _ = loaded()
    trained = [p for p in exact.parameters() if p.requires_grad]
    mine = [p for p in rounded.parameters() if p.requires_grad]
    for kind in ("eager", "compiled"):
        if kind == "compiled":
            Regions(rounded.get_base_model(), LENGTH).compile()
        for name, scale, against in (("without the adapter", 0, before), ("with it", 1, after)):
            with torch.no_grad():
                for ours, theirs in zip(mine, trained, strict=True):
                    ours.copy_(scale * theirs)
            off = 100 * (loss(rounded, judged, autocast=True) / against - 1)
            report.figure(f"{kind} BF16 off FP32, {name} ({off:+.2f}%)", abs(off), "%", most=(0.2, 1.5)[scale])
    report.close()


if __name__ == "__main__":
    main()
