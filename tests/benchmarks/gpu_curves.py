"""The engines on a real model and real data on a GPU: their loss curves, a killed run resumed, a loss that breaks.

    python tests/benchmarks/gpu_curves.py [--model FILE.gguf|FOLDER|HUB_ID] [--steps 200] [--parts curves,resume,nan]
        [--learning-rate 2e-4] [--batch-size 2] [--length 128]

Needs one GPU of FP8 (Ada, Hopper, Blackwell) and SmolLM2-135M-Instruct, or another small model, on the machine. All through
`lorawatch --record demo` in BF16 with one seed. The reference engine runs twice: two equal runs on a GPU differ too, and
nothing can be held nearer than that. `float32` is the reference engine without BF16's rounding, which tells who of two that
differ is nearer to the truth. Losses by step go to $OUT, a file for these parts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from curves import BOUNDS_PCT, judge
from report import Report

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import kill_all

from lorawatch.run import checkpoints
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Evaluation, Step

PROGRAM = [sys.executable, "-m", "lorawatch"]
ENGINES = {
    "float32": ["model.dtype=float32"],
    "reference": [],
    "reference again": [],
    "fast": ["train.engine=fast"],
    "fp8": ["train.engine=fast", "model.quantization=fp8"],
}  # fmt: skip


def arguments(given: argparse.Namespace, steps: int, *settings: str) -> list[str]:
    every = [
        f"model.name={given.model}", "model.dtype=bfloat16", f"train.steps={steps}",
        f"train.batch_size_per_gpu={given.batch_size}", f"train.learning_rate={given.learning_rate}",
        f"data.sequence_length={given.length}", "data.eval_share=0.2", "train.eval_every=100", *settings,
    ]  # fmt: skip
    return ["--record", "demo", "--gpus", given.gpus, "--json", *(word for s in every for word in ("--set", s))]


def finished(*words: str) -> RunDir:
    """Run to the end, whatever that is."""
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(words)}: status {done.returncode}\n{done.stderr[-3000:]}")
    return RunDir.find("last")


def losses(run: RunDir) -> dict[int, float]:
    """By step; the latest attempt counts."""
    lines = [line for line in JournalTail(run.rank_journal(0)).records() if isinstance(line, Step)]
    return {s.step: s.loss for s in sorted(lines, key=lambda s: s.attempt) if s.loss is not None}


def evaluated(run: RunDir) -> str:
    lines = [line for line in JournalTail(run.rank_journal(0)).records() if isinstance(line, Evaluation)]
    return ", ".join(f"{e.loss:.4f} after step {e.step} in {e.duration_s:.1f} s" for e in lines)


def curves(given: argparse.Namespace, report: Report) -> dict[str, dict[int, float]]:
    found = {}
    for name in given.engines.split(","):
        began = time.monotonic()
        run = finished(*arguments(given, given.steps, *ENGINES[name]))
        found[name] = losses(run)
        print(f"  {name}: {time.monotonic() - began:.0f} s, evaluated {evaluated(run)}", flush=True)
    reference = found.get("reference") or next(iter(found.values()))
    for name, bound in (("reference again", None), *BOUNDS_PCT.items()):
        if name in found:
            judge(report, name, *aligned(found[name], reference), bound)
    if exact := found.get("float32"):
        for name in ("reference", "fast", "fp8"):
            if name in found:
                relative = [100 * (a / b - 1) for a, b in zip(*aligned(found[name], exact), strict=True)]
                print(f"       {name} against FP32: mean {mean(relative):+.3f}%, last 20 {mean(relative[-20:]):+.3f}%")
    return found


def aligned(curve: dict[int, float], other: dict[int, float]) -> tuple[list[float], list[float]]:
    """Both curves' losses in the order of the steps."""
    return [curve[step] for step in sorted(other)], [other[step] for step in sorted(other)]


def resume(given: argparse.Namespace, report: Report, whole: dict[int, float] | None) -> dict[int, float]:
    """kill -9 of everything after the second checkpoint of a fast run, and on from there."""
    steps, every = given.steps, 40
    words = arguments(given, steps, "train.engine=fast", f"train.checkpoint_every={every}")
    recorder = subprocess.Popen(
        [*PROGRAM, *words, "--tag", "killed"], stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir()
    )
    run = None
    while run is None or not (run.checkpoints / checkpoints.folder_name(2 * every)).is_dir():
        time.sleep(0.05)
        if recorder.poll() is not None:
            sys.exit(f"the run to be killed ended by itself, status {recorder.returncode}")
        with contextlib.suppress(Exception):
            newest = RunDir.find("last")
            run = newest if "killed" in newest.info().tags else None
    kill_all(run, recorder)
    before = losses(run)
    run = finished("--record", "--resume", run.run_id, "--json")
    after = losses(run)
    report.figure("resumed fast run: steps of the curve that are missing", steps - len(after), "", most=0)
    state = run.state()
    print(f"  killed after step {max(before)}, ended {state.state} in attempt {state.attempt}")
    if whole:
        judge(report, "resumed fast run", *aligned(after, whole), BOUNDS_PCT["fast"])
    return after


def broken(given: argparse.Namespace, report: Report) -> None:
    """A learning rate that no model survives, with checkpoints."""
    for name, settings in (("reference", ()), ("fast", ("train.engine=fast",))):
        settings = (*settings, "train.learning_rate=1e8", "train.max_grad_norm=0", "train.warmup_steps=30",
                    "train.checkpoint_every=2")  # fmt: skip
        run = finished(*arguments(given, 400, *settings))
        state = run.state()
        names = sorted(p.name for p in run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []
        report.figure(f"{name}: a NaN loss ends the run as failed (1)", float(state.state == "failed"), "", least=1)
        print(
            f"  {state.failure}: {state.message} · checkpoints left: {', '.join(names) or 'none'} · at step {state.step}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--gpus", default="0")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--parts", default="curves,resume,nan")
    parser.add_argument("--learning-rate", default="2e-4")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    given = parser.parse_args()
    parts = given.parts.split(",")
    report = Report("Engines on a real model and real data")
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        found: dict[str, dict[int, float]] = {}
        if "curves" in parts:
            found = curves(given, report)
        if "resume" in parts:
            found["resumed"] = resume(given, report, found.get("fast"))
        out = Path(os.environ.get("OUT", tempfile.gettempdir())) / f"curves-{'-'.join(parts)}.json"
        out.write_text(json.dumps(found))
        if "nan" in parts:
            broken(given, report)
    report.close()


if __name__ == "__main__":
    main()
