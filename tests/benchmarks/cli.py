"""What the command line costs before it says anything, against `python -c "import click"` in the same run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from report import Report

RUNS = 1000
ROUNDS = 15


def timed(args: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(args, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def make_history(runs: int) -> None:
    """A history of many finished runs, through the same door as real ones."""
    from lorawatch.run.directory import RunDir, RunInfo, RunState
    from lorawatch.storage.ingest import finish_run

    for n in range(runs):
        at = 1_790_000_000.0 + n * 60
        run = RunDir.create(
            RunInfo(run_id="", name=f"run-{n % 7}", created_at=at, host="node7", user="u", world_size=2, device="cpu")
        )
        run.write_state(RunState(state="completed", started_at=at, ended_at=at + 50, step=60))
        finish_run(run)


def main() -> None:
    report = Report("command line")
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "LORAWATCH_HOME": home}
        os.environ["LORAWATCH_HOME"] = home
        make_history(RUNS)
        program = [str(Path(sys.executable).with_name("lorawatch"))]
        click = [sys.executable, "-c", "import click"]
        times: dict[str, list[float]] = {"click": [], "help": [], "runs": []}
        for _ in range(ROUNDS):  # interleaved, so that a busy moment hits all alike
            times["click"].append(timed(click, env))
            times["help"].append(timed([*program, "--help"], env))
            times["runs"].append(timed([*program, "runs"], env))
    base = median(times["click"])
    report.figure('python -c "import click"', base * 1e3, "ms")
    report.figure("lorawatch --help", median(times["help"]) / base, "× click", most=2)
    report.figure(f"lorawatch runs, {RUNS:,} runs", median(times["runs"]) / base, "× click", most=5)
    report.close()


if __name__ == "__main__":
    main()
