"""A rank killed, stopped, out of memory: what the verdict says and names, how long it takes, and what is left over.

python tests/benchmarks/gpu_faults.py [--ranks 2] [--cpu] [--seconds 300] [--set KEY=VALUE]
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
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from gpu_recording import PROGRAM, recipe
from report import Report

from lorawatch.run.directory import ENDED, RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Event

VICTIM = 1
HANG_TIMEOUT_S = 35
"""A little more than the warning's 30 s, so that both can be seen."""
VRAM_LEFT = 300 << 20
"""Bytes beside what was in use before: other processes' contexts come and go."""
ROOM = 18 << 30
"""Bytes left free for the rank that is to run out of memory: enough for the 8B weights (15 GiB), not for a step."""
HOG = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info(int(sys.argv[1]))
held = torch.empty(max(free - int(sys.argv[2]), 1), dtype=torch.uint8, device=f"cuda:{sys.argv[1]}")
print("held", flush=True)
time.sleep(600)
"""
AGENT = "torchrun's agent"
WANTED = {
    "kill": ("signal", "SIGKILL", f"rank {VICTIM}"),
    "term": ("signal", "SIGTERM", f"rank {VICTIM}"),
    "agent": ("signal", "SIGTERM", AGENT),
    "stop": ("hang", "is stopped", f"rank {VICTIM}"),
    "oom": ("cuda_oom", "OutOfMemoryError", f"rank {VICTIM}"),
}
"""Failure, a word of the message, and whom it must name."""
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "agent": signal.SIGTERM, "stop": signal.SIGSTOP}


def faults(report: Report, ranks: int, *, cpu: bool, settings: list[str], left_s: Callable[[], float]) -> None:
    """Bring each fault about and judge what lorawatch made of it."""
    words = {
        "kill": "kill -9 of a rank",
        "term": "SIGTERM to a rank",
        "agent": "SIGTERM to torchrun's agent",
        "stop": "SIGSTOP of a rank",
        "oom": "CUDA out of memory on one rank",
    }
    for fault, needs_s in (("kill", 60), ("term", 60), ("agent", 60), ("stop", 60 + HANG_TIMEOUT_S), ("oom", 75)):
        print(f"  {words[fault]}, of {ranks}:", flush=True)
        if fault == "oom" and cpu:
            print(
                "    left out: CPU ranks share one memory, and whom the kernel ends there is nobody's choice",
                flush=True,
            )
            continue
        if left_s() < (20 if cpu and fault in ("kill", "term", "agent") else needs_s):
            print(f"    left out: {left_s():.0f} s are left", flush=True)
            continue
        try:
            found = bring_about(fault, ranks, cpu=cpu, settings=settings, timeout_s=left_s())
        except (TimeoutError, RuntimeError, LookupError) as error:
            report.figure(f"{fault}: not brought about", 1, "", most=0)
            print(f"    {type(error).__name__}: {error}", flush=True)
            continue
        judge(report, fault, found)


def judge(report: Report, fault: str, found: dict[str, Any]) -> None:
    """Print what came of a fault, and whether it is as it should be."""
    failure, word, who = WANTED[fault]
    print(f"    {found['state']}, {found['failure']}: {found['message']}", flush=True)
    for event in found["events"]:
        print(f"    after {event['after_s']:6.1f} s {event['kind']}: {event['message'][:160]}", flush=True)
    named = who in (found["message"] or "")
    right = found["failure"] == failure and word in (found["message"] or "")
    report.figure(f"{fault}: failure is {failure}", float(right), "", least=1)
    report.figure(f"{fault}: {who} is named", float(named), "", least=1)
    report.figure(f"{fault}: time to the verdict", found["verdict_s"], "s")
    report.figure(f"{fault}: processes left over", len(found["orphans"]), "", most=0)
    if found["vram_back_s"] is not None:
        report.figure(f"{fault}: VRAM given back after the verdict", found["vram_back_s"], "s", most=10)


def bring_about(fault: str, ranks: int, *, cpu: bool, settings: list[str], timeout_s: float) -> dict[str, Any]:
    """Start a run, break a rank of it, and wait for what is made of it.

    Raises:
        TimeoutError: The run did not step, or did not end.
        RuntimeError: It could not be started.
    """
    before = vram()
    with hog(VICTIM) if fault == "oom" else contextlib.nullcontext():
        idle = vram() if fault == "oom" else before
        run = start(ranks, cpu, [*settings, "--set", f"launch.hang_timeout_s={HANG_TIMEOUT_S}"])
        began = time.time()
        try:
            if fault != "oom":
                until(lambda: run.state().step >= 10 or run.state().state in ENDED, timeout_s, "ten steps")
                began = time.time()
                victim = agent(run) if fault == "agent" else rank(run, VICTIM)
                victim.send_signal(SIGNALS[fault])
            until(lambda: run.state().state in ENDED, timeout_s, "the run's end")
            state = run.state()
            ended = state.ended_at or time.time()
            if fault == "oom":  # timed from the rank's own word
                records = [json.loads(p.read_text()) for p in run.logs.glob("attempt_*/rank-*.exit.json")]
                began = min((r["at"] for r in records if r["status"] == "failed"), default=began)
            back = None if idle is None else until(lambda: returned(idle), 30, "the VRAM")
            # The recorder writes the verdict and then brings the rest into the history: it is no orphan.
            until(lambda: not recorders(run), 60, "the recorder's end")
            orphans = [p.pid for p in of_run(run)]
        finally:
            for process in of_run(run):
                with contextlib.suppress(psutil.Error):
                    process.kill()
    events = [line for line in JournalTail(run.events_journal).records() if isinstance(line, Event)]
    return {
        "state": state.state, "failure": state.failure, "message": state.message, "verdict_s": ended - began,
        "vram_back_s": back, "orphans": orphans, "run_id": run.run_id,
        "events": [
            {"kind": e.kind, "message": e.message, "after_s": e.at - began} for e in events if e.severity != "info"
        ],
    }  # fmt: skip


def vram() -> list[int] | None:
    """Bytes in use, GPU by GPU; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [int(pynvml.nvmlDeviceGetMemoryInfo(h).used) for h in handles]


def returned(idle: list[int]) -> bool:
    """Whether no GPU has much more in use than before."""
    return all(now <= before + VRAM_LEFT for now, before in zip(vram() or [], idle, strict=True))


@contextlib.contextmanager
def hog(gpu: int) -> Iterator[None]:
    """Somebody else who holds most of a GPU's memory."""
    process = subprocess.Popen([sys.executable, "-c", HOG, str(gpu), str(ROOM)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"held\n":
            raise RuntimeError(f"GPU {gpu}'s memory could not be held")
        yield
    finally:
        process.kill()
        process.wait()


def start(ranks: int, cpu: bool, settings: list[str]) -> RunDir:
    """A run in the background that would take long."""
    done = subprocess.run(
        [*PROGRAM, "--record", *recipe(ranks, "reference", cpu), "--set", "train.steps=100000", *settings,
         "--tag", "faults", "--detach", "--json"],
        capture_output=True, text=True, check=False, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return RunDir.find(json.loads(done.stdout)["run_ids"][0])


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait; how long it took.

    Raises:
        TimeoutError: It took longer.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - began


def of_run(run: RunDir) -> list[psutil.Process]:
    """Living processes that work in this run's directory: agent and ranks."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(run.root) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def recorders(run: RunDir) -> bool:
    recorder = run.state().recorder
    return recorder is not None and recorder.alive()


def agent(run: RunDir) -> psutil.Process:
    """torchrun's agent.

    Raises:
        LookupError: It has not begun.
    """
    launcher = run.state().launcher
    if launcher is None:
        raise LookupError("torchrun has not begun")
    return psutil.Process(launcher.pid)


def rank(run: RunDir, number: int) -> psutil.Process:
    """The process of a rank, as its journal tells.

    Raises:
        LookupError: It has not begun.
    """
    for line in run.rank_journal(number).read_text().splitlines():
        if '"rank_started"' in line:
            return psutil.Process(json.loads(line)["pid"])
    raise LookupError(f"rank {number} has not begun")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    report = Report(f"faults of one rank of {given.ranks}")
    deadline = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        settings = [word for s in given.set for word in ("--set", s)]
        faults(report, given.ranks, cpu=given.cpu, settings=settings, left_s=lambda: deadline - time.monotonic())
    report.close()


if __name__ == "__main__":
    main()
