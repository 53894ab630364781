"""What evaluations cost the steps beside them on a GPU: tok/s, the step behind one, memory; and that the engines agree.

    python tests/benchmarks/gpu_evaluation.py [--recipe exxact-8b] [--set model.weights=random …] [--gpus 0] [--steps 80]
        [--engines reference,fast]

Each engine trains the same rows three times: without evaluations, with one every ten steps, and without again, so that a
drift of the machine shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from report import Report

from lorawatch.run.adapters import best_of
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Evaluation, Step

EVERY = 10
ENGINES = ("reference", "fast")


@dataclass
class Ran:
    """A finished run: the recorder's rate, and rank 0's lines."""

    run: RunDir
    tok_s: float
    steps: list[Step]
    evaluations: list[Evaluation]

    @property
    def reserved(self) -> int | None:
        return self.steps[-1].memory_reserved_bytes


def ran(given: argparse.Namespace, *settings: str) -> Ran:
    every = (*given.set, f"train.steps={given.steps}", "measure.exclude_steps=3", *settings)
    words = ["--record", given.recipe, "--gpus", given.gpus, "--json", *(w for s in every for w in ("--set", s))]
    done = subprocess.run([sys.executable, "-m", "lorawatch", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    end = json.loads(done.stdout.splitlines()[-1])
    run = RunDir.find(end["run_id"])
    lines = list(JournalTail(run.rank_journal(0)).records())
    return Ran(
        run, end["summary"]["tok_s"], [x for x in lines if isinstance(x, Step)],
        [x for x in lines if isinstance(x, Evaluation)],
    )  # fmt: skip


def cost(report: Report, engine: str, before: Ran, with_: Ran, after: Ran) -> None:
    plain = (before.tok_s + after.tok_s) / 2
    drift = 100 * (after.tok_s / before.tok_s - 1)
    report.figure(f"{engine}: tok/s with evaluations against without", with_.tok_s / plain, "×", least=0.97)
    steps = {s.step: s.duration_s for s in with_.steps if s.phase == "train"}
    usual = statistics.median(steps.values())
    behind = statistics.median(d for n, d in steps.items() if n % EVERY == 1)
    report.figure(f"{engine}: the step behind an evaluation against the median", behind / usual, "×", most=1.5)
    if with_.reserved and before.reserved:
        report.figure(f"{engine}: memory reserved against without", with_.reserved / before.reserved, "×", most=1.1)
    apart = [abs(a.loss / b.loss - 1) for a, b in zip(with_.steps, before.steps, strict=True) if a.loss and b.loss]
    again = [abs(a.loss / b.loss - 1) for a, b in zip(after.steps, before.steps, strict=True) if a.loss and b.loss]
    best = best_of(with_.run)
    took = statistics.median(e.duration_s or 0.0 for e in with_.evaluations)
    first = statistics.median(d for n, d in steps.items() if n <= EVERY)
    between = statistics.median(d for n, d in steps.items() if n > EVERY and n % EVERY != 1)
    plain_s = statistics.median(s.duration_s for r in (before, after) for s in r.steps if s.phase == "train")
    print(f"  steps without evaluations {plain_s:.4f} s, before the first {first:.4f} s, between two {between:.4f} s")
    print(f"  without drifted {drift:+.1f}%; losses with evaluations at most {max(apart):.2g} from those without, which differ "
          f"by {max(again):.2g} among themselves; an evaluation takes {took:.2f} s, a step {usual:.3f} s; best: "
          f"{best and (best.step, best.loss)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="exxact-8b")
    parser.add_argument("--set", action="append", default=None)
    parser.add_argument("--gpus", default="0")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--share", type=float, default=0.4, help="rows to evaluate on, over those that are trained on")
    given = parser.parse_args()
    given.set = given.set if given.set is not None else ["model.weights=random"]
    report = Report("Evaluations beside the steps")
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        last: dict[str, float] = {}
        for engine in given.engines.split(","):
            plain = (f"train.engine={engine}",)
            evaluated = (*plain, f"data.eval_share={given.share}", f"train.eval_every={EVERY}")
            runs = ran(given, *plain), ran(given, *evaluated), ran(given, *plain)
            cost(report, engine, *runs)
            last[engine] = runs[1].evaluations[0].loss or 0.0
        if len(last) == 2:
            off = 100 * abs(last["fast"] / last["reference"] - 1)
            report.figure("the engines' first evaluations apart", off, "%", most=0.5)
    report.close()


if __name__ == "__main__":
    main()
