"""The engines' loss curves on a real model and real data, without a GPU: SmolLM2 on the demo's chats, one seed, 200 steps.

    python tests/benchmarks/curves.py [--steps 200] [--rows reference,fast,fp8] [--out tests/data/demo_curves.json]

Each engine in a process of its own, one rank on the CPU, in FP32. `fp8` is the fast engine with its frozen layers rounded as
on a GPU, row by row to FP8 in both directions; the products of what was rounded are computed in FP32, where a GPU's are
accumulated. So what differs from the reference is the rounding alone. Some minutes on two cores.
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
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("LOSSES " + json.dumps(train(given.one, given.steps)))
        return
    report = Report(f"{given.steps} steps of the demo by engine, on the CPU")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as home:
        for row in given.rows.split(","):
            done = subprocess.run(
                [sys.executable, __file__, "--one", row, "--steps", str(given.steps)], capture_output=True, text=True,
                check=False, env={**os.environ, "LORAWATCH_HOME": home, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            lines = [line for line in done.stdout.splitlines() if line.startswith("LOSSES ")]
            if not lines:
                sys.exit(f"{row}: status {done.returncode}\n{done.stderr[-3000:]}")
            found[row] = json.loads(lines[0].removeprefix("LOSSES "))
    reference = found["reference"]
    for row, bound in BOUNDS_PCT.items():
        if row in found:
            relative = [100 * (a / b - 1) for a, b in zip(found[row], reference, strict=True)]
            report.figure(f"{row}: last loss against the reference's", abs(relative[-1]), "%", most=bound)
            ends = statistics.mean(found[row][-LAST:]) / statistics.mean(reference[-LAST:]) - 1
            print(f"       {found[row][-1]:.4f} ({reference[-1]:.4f}); of the last {LAST} {100 * ends:+.3f}%; mean drift "
                  f"{statistics.mean(relative):+.4f}%, above the reference in {sum(r > 0 for r in relative)} of "
                  f"{len(relative)} steps, furthest {max(map(abs, relative)):.3f}%")  # fmt: skip
    if given.out:
        rounded = {row: [round(loss, 5) for loss in losses] for row, losses in found.items()}
        given.out.write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    report.close()


def train(row: str, steps: int) -> list[float]:
    """In a process of its own: what a rank does; the losses of its steps."""
    from lorawatch.training import compile_cache

    compile_cache.set_up(1)
    from lorawatch import recipe as recipes
    from lorawatch.journal import JournalTail
    from lorawatch.records import Step
    from lorawatch.rundir import RunDir
    from lorawatch.training import fp8, trainer
    from lorawatch.training import model as models
    from lorawatch.training.observer import Observer
    from lorawatch.training.place import Place

    engine = "reference" if row == "reference" else "fast"
    recipe = recipes.load("demo", [f"train.steps={steps}", f"train.engine={engine}", "train.learning_rate=1e-3"])
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
        lines = [line for line in JournalTail(run.rank_journal(0)).records() if isinstance(line, Step)]
    return [line.loss or float("nan") for line in lines]


if __name__ == "__main__":
    main()
