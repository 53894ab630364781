"""What recording and watching cost the training: one real run, recorded and not in turns, on every GPU of the host.

    python tests/benchmarks/gpu_recording.py [--ranks 2] [--engine fast] [--pairs 10] [--steps 60] [--panes 8] [--cpu]
        [--set KEY=VALUE]

`lorawatch --record exxact-8b` with random weights, and `lorawatch attach` on a terminal of 160×50 with a pane a GPU. In
half the turns everything is on: the callback on every rank, the recorder, the screen. In the other half the callback does
nothing and the other two are frozen. The figure is tok/s of the one over tok/s of the other, pair by pair. Where the host
has fewer GPUs than `--panes`, a second recorder and screen take part that sample and draw so many of a stub driver, which
is more work than one pair of them would have with that many real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import recording_on_off
from report import Report

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.nvml import stub_env
from terminal import Terminal

from lorawatch.analysis.throughput import mean_interval95
from lorawatch.run.directory import ENDED, RunDir

PROGRAM = [sys.executable, "-m", "lorawatch"]
SIZE = (160, 50)


def recipe(ranks: int, engine: str, cpu: bool) -> list[str]:
    """The recipe and where it runs."""
    which = f"cpu:{ranks}" if cpu else ",".join(map(str, range(ranks)))
    name = ["tiny"] if cpu else ["exxact-8b", "--set", "model.weights=random"]
    return [*name, "--gpus", which, "--set", f"train.engine={engine}"]


def measure(
    ranks: int,
    *,
    engine: str,
    cpu: bool,
    pairs: int,
    steps: int,
    timeout_s: float,
    panes: int = 0,
    settings: list[str] | None = None,
) -> dict[str, Any]:
    """Train in turns.

    Args:
        panes: GPUs of a stub driver that are recorded and shown beside; 0: none.

    Returns:
        `halves`: each with `on` and `seconds`, in their order; `painted`: bytes that the screen wrote while it was on.

    Raises:
        RuntimeError: The run did not get that far; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, **recording_on_off.plan(folder, pairs, steps)}
        log = folder / "recorder.log"
        with open(log, "wb") as out:
            recorder = subprocess.Popen(
                [*PROGRAM, "--record", *recipe(ranks, engine, cpu), *(settings or []), "--tag", "recording",
                 "--set", f"train.steps={recording_on_off.total_steps(pairs, steps)}"],
                env=env, cwd=folder, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            run = _run_of(recorder, log, timeout_s)
            with (
                Terminal([*PROGRAM, "attach", run.run_id], dict(os.environ), SIZE) as screen,
                beside(panes, folder) as others,
            ):
                pids = folder / ".pids"
                pids.write_text(" ".join(map(str, (recorder.pid, screen.process.pid, *others))))
                pids.rename(folder / "pids")
                screen.wait(run.run_id, timeout=30)
                try:
                    recorder.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    raise RuntimeError(f"not done within {timeout_s:.0f} s: {_end_of(log)}") from None
                painted = len(screen.output())
                os.kill(screen.process.pid, signal.SIGCONT)
        finally:
            _end(recorder)
        found = folder / "halves.jsonl"
        lines = [json.loads(line) for line in found.read_text().splitlines()] if found.exists() else []
        if len(lines) < 2 * pairs:
            raise RuntimeError(f"{len(lines)} of {2 * pairs} halves were timed: {_end_of(log)}")
        return {"halves": lines, "painted": painted, "run_id": run.run_id}


@contextlib.contextmanager
def beside(panes: int, folder: Path) -> Iterator[list[int]]:
    """A recorder and a screen of so many stub GPUs; their pids."""
    if not panes:
        yield []
        return
    home = folder / "stub-home"
    env = {**os.environ, **stub_env(folder / "stub", gpus=panes), "LORAWATCH_HOME": str(home)}
    recorder = subprocess.Popen(
        [*PROGRAM, "--record", "--", "sleep", "3600"], env=env, cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while not list(home.glob("runs/*/state.json")):
            time.sleep(0.1)
        (run,) = (home / "runs").iterdir()
        with Terminal([*PROGRAM, "attach", run.name], env, SIZE) as screen:
            screen.wait(f"{panes - 1} · ", timeout=30)
            yield [recorder.pid, screen.process.pid]
    finally:
        _end(recorder)


def ratios(lines: list[dict[str, Any]]) -> list[float]:
    """tok/s recorded over tok/s unrecorded, of each pair of halves."""
    found = []
    for one, other in zip(lines[::2], lines[1::2], strict=True):
        on, off = (one, other) if one["on"] else (other, one)
        found.append(off["seconds"] / on["seconds"])
    return found


def tell(report: Report, result: dict[str, Any], tokens: int, *, bound: float | None) -> None:
    """The figures of a measurement; `tokens` are of a half."""
    pairs = ratios(result["halves"])
    off = [tokens / h["seconds"] for h in result["halves"] if not h["on"]]
    print("  pairs, recorded ÷ unrecorded: " + " ".join(f"{r:.4f}" for r in pairs), flush=True)
    report.figure("tok/s unrecorded, median", median(off), "tok/s")
    report.figure("tok/s recorded ÷ unrecorded", mean(pairs), "×", least=bound, ci95=mean_interval95(pairs))
    report.figure("  median of the pairs", median(pairs), "×")
    report.figure("  written by the screen meanwhile", result["painted"] / 1e3, "kB")


def _run_of(recorder: subprocess.Popen[bytes], log: Path, timeout_s: float) -> RunDir:
    """The run that this recorder has begun."""
    deadline = time.monotonic() + min(60, timeout_s)
    while time.monotonic() < deadline and recorder.poll() is None:
        for word in log.read_text(errors="replace").split("\n")[0].split()[1:2]:
            run = RunDir.find(word)
            if run.state().state not in ENDED:
                return run
        time.sleep(0.1)
    raise RuntimeError(f"no run began: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


def _end(recorder: subprocess.Popen[bytes]) -> None:
    if recorder.poll() is not None:
        return
    below = psutil.Process(recorder.pid).children(recursive=True)
    for process in (*below, recorder):
        process.kill()
    recorder.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--engine", default="fast")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--panes", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    report = Report(f"recorded and watched against not, {given.ranks} ranks, engine {given.engine}")
    settings = [word for s in given.set for word in ("--set", s)]
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        result = measure(
            given.ranks, engine=given.engine, cpu=given.cpu, pairs=given.pairs, steps=given.steps,
            timeout_s=given.seconds, panes=given.panes, settings=settings,
        )  # fmt: skip
    tokens = given.steps * given.ranks * 2 * (32 if given.cpu else 512)
    tell(report, result, tokens, bound=None if given.cpu else 0.995)
    report.close()


if __name__ == "__main__":
    main()
