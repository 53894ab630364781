"""Whether sixty steps tell how long an epoch takes: the estimate from short runs against a really run long stretch.

    python tests/benchmarks/gpu_epoch.py [--repeat 3] [--steps 2000] [--recipe exxact-8b-fast] [--set KEY=VALUE]

Needs one GPU of 24 GiB or more; no network. 60 steps so many times, then the long stretch, all through `lorawatch --record`
with random weights. Prints a JSON line a run, how the long stretch's rate fell from its first seconds on, and the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def record(recipe: str, gpus: str, settings: list[str], tag: str, steps: int, repeat: int) -> None:
    command = [sys.executable, "-m", "lorawatch", "--record", recipe, "--gpus", gpus, "--tag", tag, "--json"]
    command += ["--repeat", str(repeat), "--set", f"train.steps={steps}", "--set", "model.weights=random"]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--recipe", default="exxact-8b-fast", help="the reference engine's rate follows its host's CPU")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--gpus", default="0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        Path(os.environ["LORAWATCH_HOME"]).mkdir(exist_ok=True)
        record(given.recipe, given.gpus, given.set, "short", 60, given.repeat)
        record(given.recipe, given.gpus, given.set, "long", given.steps, 1)
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
        show_settling(long.run_id)
        held = []
        short = [r for r in runs if "short" in r.tags]
        for words, of in [
            *((f"one run of 60 steps ({r.run_id})", [r]) for r in short), (f"{len(short)} runs of 60 steps", short)
        ]:  # fmt: skip
            found = measured(of, recipes)[0][0]
            time = found.epoch_time(tokens)
            off = 100 * (time.value / really - 1)
            inside = time.low is not None and time.high is not None and time.low <= really <= time.high
            held.append(abs(off) <= 2 and inside)
            ends = [100 * (end / time.value - 1) if end else float("nan") for end in (time.low, time.high)]
            print(f"{words}: {off:+.2f}% off the {given.steps}-step stretch (bound 2%), {'inside' if inside else 'OUTSIDE'} "
                  f"its interval of {ends[0]:+.2f} to {ends[1]:+.2f}%")  # fmt: skip
    return 0 if held[-1] else 1


def show_settling(run_id: str) -> None:
    """The long stretch's rate over its first seconds against its whole: what a short window cannot know."""
    from lorawatch.storage.connection import reading

    with reading() as connection:
        rows = connection.execute(
            "SELECT epoch(ended_at), duration_s, tokens FROM steps WHERE run_id = ? AND rank = 0 AND phase = 'train' "
            "ORDER BY step", [run_id],
        ).fetchall()  # fmt: skip
        samples = connection.execute(
            "SELECT epoch(sampled_at), power_w, temperature_c, sm_clock_mhz FROM gpu_samples WHERE run_id = ? "
            "ORDER BY sampled_at", [run_id],
        ).fetchall()  # fmt: skip
    whole = sum(r[2] for r in rows) / sum(r[1] for r in rows)
    start = rows[0][0] - rows[0][1]
    spans = ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, 8), (8, 15), (15, 30), (30, 60), (60, 90), (90, 200))
    for low, high in spans:
        inside = [r for r in rows if low <= r[0] - start < high]
        first = [r for r in rows if r[0] - start < high]
        seen = [s for s in samples if low <= s[0] - start < high and s[1] is not None]
        if not inside or not seen:
            continue
        rates = [100 * (sum(r[2] for r in part) / sum(r[1] for r in part) / whole - 1) for part in (inside, first)]
        power, temperature, clock = (sum(s[i] or 0 for s in seen) / len(seen) for i in (1, 2, 3))
        print(f"{low:>4}–{high:<4} s: {rates[0]:+.2f}% of the whole, the first {high} s {rates[1]:+.2f}%; "
              f"{power:.0f} W {temperature:.0f} °C {clock:.0f} MHz")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
