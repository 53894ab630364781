"""Whether sixty steps tell how long an epoch takes: the estimate from short runs against a really run long stretch.

    python tests/benchmarks/gpu_epoch.py [--repeat 3] [--steps 2000] [--batch 32]

Needs one GPU; no network. Trains SmolLM2-135M's shape on random tokens, 60 steps so many times, then the long stretch, all
through `lorawatch --record`. Prints a JSON line a run and the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any


def record(tag: str, steps: int, repeat: int, batch: int, gpus: str) -> None:
    subprocess.run(
        [
            sys.executable, "-m", "lorawatch", "--record", "exxact-8b", "--gpus", gpus, "--tag", tag,
            "--repeat", str(repeat), "--set", "model.name=HuggingFaceTB/SmolLM2-135M-Instruct",
            "--set", "model.weights=random", "--set", f"train.batch_size_per_gpu={batch}", "--set", f"train.steps={steps}",
            "--json",
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def configuration(tag: str) -> Any:
    from lorawatch.comparing.gather import gather

    (found,) = gather(tag=tag, with_published=False).configurations
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--gpus", default="0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        record("short", 60, given.repeat, given.batch, given.gpus)
        record("long", given.steps, 1, given.batch, given.gpus)
        from lorawatch.analysis.epoch import epoch_time_s
        from lorawatch.analysis.interval import Figure
        from lorawatch.comparing.configuration import measured
        from lorawatch.storage.configurations import run_summaries

        runs, recipes = run_summaries()
        for run in runs:
            print(
                json.dumps({"tags": run.tags, "tok_s": run.tok_s, "ci95": run.tok_s_ci95, "steps": run.measured_steps})
            )
        long = next(r for r in runs if "long" in r.tags)
        assert long.tok_s is not None
        tokens = 1e9
        really = tokens / long.tok_s
        held = []
        short = [r for r in runs if "short" in r.tags]
        pooled = measured(short, recipes)[0][0].tok_s
        for words, rate in [
            *((f"one run of 60 steps ({r.run_id})", Figure(r.tok_s or 0.0, r.tok_s_ci95)) for r in short),
            (f"{len(short)} runs of 60 steps", pooled),
        ]:
            time = epoch_time_s(tokens, rate)
            off = 100 * (time.value / really - 1)
            inside = time.low is not None and time.high is not None and time.low <= really <= time.high
            held.append(abs(off) <= 2 and inside)
            print(f"{words}: {off:+.2f}% off the {given.steps}-step stretch (bound 2%), {'inside' if inside else 'OUTSIDE'} "
                  f"its interval of ± {100 * (rate.relative or 0):.2f}%")  # fmt: skip
    return 0 if held[-1] else 1


if __name__ == "__main__":
    sys.exit(main())
