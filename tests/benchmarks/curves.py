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
from pathlib import Path

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
        print("LOSSES " + json.dumps(train(given.one, given.steps, given.learning_rate)))
        return
    report = Report(f"{given.steps} steps of the demo by engine, on the CPU")
    found: dict[str, list[float]] = {}
    held_out: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        for row in given.rows.split(","):
            done = subprocess.run(
                [sys.executable, __file__, "--one", row, "--steps", str(given.steps), "--learning-rate",
                 str(given.learning_rate)], capture_output=True, text=True,
                check=False, env={**os.environ, "LORAWATCH_HOME": home, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith("LOSSES ")]
            if not lines:
                sys.exit(f"{row}: status {done.returncode}\n{done.stderr[-3000:]}")
            found[row], held_out[row] = json.loads(lines[0].removeprefix("LOSSES "))
    reference = found["reference"]
    for row, bound in BOUNDS_PCT.items():
        if row in found:
            relative = [100 * (a / b - 1) for a, b in zip(found[row], reference, strict=True)]
            ends = 100 * (statistics.mean(found[row][-LAST:]) / statistics.mean(reference[-LAST:]) - 1)
            report.figure(f"{row}: mean of the last {LAST} losses against the reference's", abs(ends), "%", most=bound)
            held = 100 * (held_out[row] / held_out["reference"] - 1)
            report.figure(f"{row}: loss on rows held out against the reference's", abs(held), "%", most=bound)
            print(f"       last {LAST} {ends:+.2f}%, held out {held_out[row]:.4f} ({held:+.3f}%), last {relative[-1]:+.2f}%, "
                  f"mean drift {statistics.mean(relative):+.4f}%, above the reference in {sum(r > 0 for r in relative)} of "
                  f"{len(relative)} steps, furthest {max(map(abs, relative)):.3f}%")  # fmt: skip
    if given.out:
        rounded = {row: [round(loss, 5) for loss in losses] for row, losses in found.items()}
        given.out.write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    report.close()


def train(row: str, steps: int, learning_rate: float) -> tuple[list[float], float]:
    """In a process of its own: what a rank does; the losses of its steps, and that of the rows held out."""
    from lorawatch.training import compile_cache

    compile_cache.set_up(1)
    from lorawatch import recipe as recipes
    from lorawatch.journal import JournalTail
    from lorawatch.records import Evaluation, Step
    from lorawatch.rundir import RunDir
    from lorawatch.training import fp8, trainer
    from lorawatch.training import model as models
    from lorawatch.training.observer import Observer
    from lorawatch.training.place import Place

    engine = "reference" if row == "reference" else "fast"
    recipe = recipes.load("demo", [
        f"train.steps={steps}", f"train.engine={engine}", f"train.learning_rate={learning_rate}", "data.eval_share=0.2",
    ])  # fmt: skip
    if row == "fp8":  # the recipe's word for it is for GPUs alone
        load = models.load_model

        def rounded(*given: object) -> object:
            model = load(*given)  # type: ignore[arg-type]
            fp8.convert(model)
            return model

        models.load_model = rounded  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        observer = Observer(run, Place()).start()
        trainer.train(run, recipe, Place(), observer, "cpu")
        observer.close()
        lines = list(JournalTail(run.rank_journal(0)).records())
    losses = [line.loss or float("nan") for line in lines if isinstance(line, Step)]
    return losses, [line.loss or float("nan") for line in lines if isinstance(line, Evaluation)][-1]


if __name__ == "__main__":
    main()
