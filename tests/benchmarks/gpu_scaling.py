"""The published experiment on this machine's GPUs: a sweep with separate runs and repeats, its table, and what faults do.

    python tests/benchmarks/gpu_scaling.py [--sweep 1,2] [--repeat 3] [--set KEY=VALUE …] [--faults] [--only-faults]

Needs several GPUs; no network (random weights). LORAWATCH_HOME keeps the runs where it is set. NVLink multicast is left as
the machine has it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lorawatch.rundir import ENDED, RunDir

PROGRAM = [sys.executable, "-m", "lorawatch"]
RECIPE = ["--record", "exxact-8b", "--set", "model.weights=random"]


def vram() -> list[int]:
    """MiB in use, GPU by GPU."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [pynvml.nvmlDeviceGetMemoryInfo(h).used >> 20 for h in handles]


def sweep(counts: str, repeat: int, settings: list[str]) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [*PROGRAM, *RECIPE, *settings, "--sweep", counts, "--separate", "--repeat", str(repeat), "--tag", "scaling"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-2500:], done.stderr[-1500:])
    print(f"sweep: {time.monotonic() - began:.0f} s, exit status {done.returncode}")
    for form in ("table", "markdown"):
        told = subprocess.run(
            [*PROGRAM, "compare", "--tag", "scaling", "--format", form], capture_output=True, text=True, check=False
        )
        print(told.stdout, told.stderr[-500:])


def start(*more: str) -> RunDir:
    done = subprocess.run(
        [*PROGRAM, *RECIPE, "--set", "train.steps=5000", *more, "--detach", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return RunDir.find(json.loads(done.stdout)["run_ids"][0])


def until(condition: object, seconds: float = 120.0) -> float:
    began = time.monotonic()
    while not condition():  # type: ignore[operator]
        if time.monotonic() - began > seconds:
            raise TimeoutError
        time.sleep(0.05)
    return time.monotonic() - began


def after(run: RunDir, what: str, idle: list[int]) -> None:
    """Wait for the verdict, then for the memory; say how long each took and what is left."""
    took = until(lambda: run.state().state in ENDED, 240)
    state = run.state()
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(run.root) in " ".join(p.info["cmdline"] or ())]
    back = until(lambda: all(now <= before + 300 for now, before in zip(vram(), idle, strict=True)), 60)
    print(json.dumps({"fault": what, "state": state.state, "failure": state.failure, "message": state.message,
                      "verdict_s": round(took, 1), "vram_back_s": round(back, 1), "orphans": left}))  # fmt: skip
    for line in run.events_journal.read_text().splitlines():
        if '"severity":"' in line:
            print("   ", line[:300])


def rank(run: RunDir, number: int) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        mine = "lorawatch.training.worker" in words and str(run.root) in words
        if mine and process.environ().get("RANK") == str(number):
            return process
    raise LookupError(number)


def faults() -> None:
    idle = vram()
    run = start()
    until(lambda: run.state().step >= 10)
    rank(run, 1).send_signal(signal.SIGKILL)
    after(run, "kill -9 of rank 1", idle)
    run = start("--set", "launch.hang_timeout_s=40")
    until(lambda: run.state().step >= 10)
    rank(run, 1).send_signal(signal.SIGSTOP)
    after(run, "SIGSTOP of rank 1", idle)
    hog = subprocess.Popen(
        [sys.executable, "-c", "import torch,time; x=torch.empty(60<<30,dtype=torch.uint8,device='cuda:1'); "
         "print('held',flush=True); time.sleep(300)"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert hog.stdout is not None
    hog.stdout.readline()
    try:
        run = start()
        after(run, "CUDA OOM on rank 1 only", vram())
    finally:
        hog.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", default="1,2")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--only-faults", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        Path(os.environ["LORAWATCH_HOME"]).mkdir(exist_ok=True)
        if not given.only_faults:
            sweep(given.sweep, given.repeat, [word for s in given.set for word in ("--set", s)])
        if given.faults or given.only_faults:
            faults()


if __name__ == "__main__":
    main()
