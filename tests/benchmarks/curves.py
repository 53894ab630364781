"""The engines' loss curves on a real model and real data, without a GPU: SmolLM2 on the demo's chats, one seed, 200 steps.

    python tests/benchmarks/curves.py [--steps 200] [--learning-rate 2e-4] [--rows reference,fast,fp8] [--out FILE]

Each engine in a process of its own, one rank on the CPU, in FP32. `fp8` is the fast engine with its frozen layers rounded as
on a GPU, row by row to FP8 in both directions; the products of what was rounded are computed in FP32, where a GPU's are
accumulated. So what differs from the reference is the rounding alone. The final loss is the mean of the last 20 steps, since a
step's two rows tell little by themselves, and that of a fifth of the rows, held out. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from child import result_of, tell
from report import Report

BOUNDS_PCT = {"fast": 0.5, "fp8": 1.0}
LAST = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", default="reference,fast,fp8")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        tell(train(given.one, given.steps, given.learning_rate))
        return
    report = Report(f"{given.steps} steps of the demo by engine, on the CPU")
    found: dict[str, list[float]] = {}
    held_out: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        for row in given.rows.split(","):
            process = subprocess.Popen(
                [sys.executable, __file__, "--one", row, "--steps", str(given.steps), "--learning-rate",
                 str(given.learning_rate)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "LORAWATCH_HOME": home, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            result = result_of(process, 3600)
            if "error" in result:
                sys.exit(f"{row}: {result['error']}")
            found[row], held_out[row] = result["losses"], result["held_out"]
    for row, bound in BOUNDS_PCT.items():
        if row in found:
            judge(report, row, found[row], found["reference"], bound)
            held = 100 * (held_out[row] / held_out["reference"] - 1)
            report.figure(f"{row}: loss on rows held out against the reference's", abs(held), "%", most=bound)
    if given.out:
        rounded = {row: [round(loss, 5) for loss in losses] for row, losses in found.items()}
        given.out.write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    report.close()


def judge(report: Report, name: str, losses: Sequence[float], reference: Sequence[float], most: float | None) -> None:
    """Print how far a curve ends from the reference's, beside its bound, and whether it leans to one side on the way."""
    ends = 100 * (statistics.mean(losses[-LAST:]) / statistics.mean(reference[-LAST:]) - 1)
    report.figure(f"{name}: mean of the last {LAST} losses against the reference's", abs(ends), "%", most=most)
    relative = [100 * (a / b - 1) for a, b in zip(losses, reference, strict=True)]
    print(f"       last {LAST} {ends:+.3f}%, last loss {losses[-1]:.4f} ({relative[-1]:+.2f}%), mean drift "
          f"{statistics.mean(relative):+.4f}%, above the reference in {sum(r > 0 for r in relative)} of {len(relative)} "
          f"steps, furthest {max(map(abs, relative)):.3f}%")  # fmt: skip


def train(row: str, steps: int, learning_rate: float) -> dict[str, Any]:
    """In a process of its own: what a rank does; the losses of its steps, and that of the rows held out."""
    from lorawatch.training import compile_cache

    compile_cache.set_up(1)
    from lorawatch.recipe import loading
    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Evaluation, Step
    from lorawatch.training import fp8, trainer
    from lorawatch.training import model as models
    from lorawatch.training.observer import Observer
    from lorawatch.training.rank_info import RankInfo

    engine = "reference" if row == "reference" else "fast"
    recipe = loading.load("demo", [
        f"train.steps={steps}", f"train.engine={engine}", f"train.learning_rate={learning_rate}", "data.eval_share=0.2",
    ])  # fmt: skip
    if row == "fp8":  # the recipe's word for it is for GPUs alone
        load = models.load_model

        def rounded(*given: object) -> object:
            model = load(*given)  # type: ignore[arg-type]
            fp8.convert_frozen_linears(model)
            return model

        models.load_model = rounded  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        observer = Observer(run, RankInfo()).start()
        trainer.train(run, recipe, RankInfo(), observer, "cpu")
        observer.close()
        lines = list(JournalTail(run.rank_journal(0)).records())
    losses = [line.loss or float("nan") for line in lines if isinstance(line, Step)]
    held_out = [line.loss or float("nan") for line in lines if isinstance(line, Evaluation)]
    return {"losses": losses, "held_out": held_out[-1]}


if __name__ == "__main__":
    main()
