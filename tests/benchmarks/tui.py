"""What the screens cost: first frame, a day's CPU and memory, keys, freshness, and long histories.

`python tests/benchmarks/tui.py`; about four minutes and 1 GB of disk. A real pseudo-terminal of 160×50, a stub driver with
8 GPUs, and a writer that appends to a live run's journals what a recorded H100 run has, for 8 ranks at 5 samples a second.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import msgspec
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.nvml import stub_env
from history import DATA, step
from report import Report
from terminal import Terminal

from lorawatch.run.directory import Gpu, RunDir, RunInfo, RunState
from lorawatch.run.journal import JournalTail, JournalWriter
from lorawatch.run.records import GpuSample, HostSample, RankStarted, Record, Step
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.system.processes import ProcessId

RANKS = 8
SIZE = (160, 50)
LONG_STEPS = 100_000
HISTORY_RUNS = 10_000
KEYS = 60
PROGRAM = [str(Path(sys.executable).with_name("lorawatch"))]
EMPTY = """
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("first frame")
Empty().run()
"""
DAY = Path(__file__).with_name("tui_day.py")


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def gpus(host: str = "node7") -> list[Gpu]:
    return [
        Gpu(host=host, gpu_index=i, gpu_uuid=f"GPU-{i}", sku="NVIDIA H100 80GB HBM3", memory_total_bytes=85_520_809_984,
            used=True, power_limit_w=700.0)
        for i in range(RANKS)
    ]  # fmt: skip


def new_run(name: str) -> RunDir:
    return RunDir.create(
        RunInfo(run_id="", name=name, created_at=time.time(), host="node7", user="u", world_size=RANKS, device="cuda",
                gpus=gpus())
    )  # fmt: skip


def recorded() -> tuple[list[Step], list[GpuSample]]:
    """Steps and samples of a run recorded on an H100."""
    folder = DATA / "h100_run" / "0gq2zx6h" / "journal"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in JournalTail(path).records()]
    used = next(line.gpu_uuid for line in lines if isinstance(line, GpuSample))
    return (
        [line for line in lines if isinstance(line, Step)],
        [line for line in lines if isinstance(line, GpuSample) and line.gpu_uuid == used],
    )


class Writer:
    """Plays the recorded run into a run's journals for 8 ranks; GPU 0's watts are unique and noted with their time."""

    def __init__(self, run: RunDir) -> None:
        self.written: dict[str, float] = {}
        self._stop = threading.Event()
        self._run = run
        self._thread = threading.Thread(target=self._work)
        begin = time.time()
        for rank in range(RANKS):
            self._append(
                run.rank_journal(rank),
                RankStarted(at=begin, attempt=0, rank=rank, local_rank=rank, world_size=RANKS, host="node7", pid=1,
                            device="cuda", gpu_uuid=f"GPU-{rank}", steps_total=LONG_STEPS, flops_per_token=48e9,
                            dtype="bfloat16"),
            )  # fmt: skip

    def _append(self, path: Path, *records: Record) -> None:
        with open(path, "ab") as file:
            file.write(b"".join(msgspec.json.encode(r) + b"\n" for r in records))

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        steps, samples = recorded()
        tick = done = 0
        next_step = time.time()
        while not self._stop.wait(0.2):
            now = time.time()
            sample = samples[tick % len(samples)]
            lines: list[Record] = []
            for card in range(RANKS):
                watts = sample.power_w
                if card == 0:
                    watts = 101.0 + tick % 590
                    self.written[f"{watts:.0f}/700 W"] = time.monotonic()
                lines.append(msgspec.structs.replace(sample, sampled_at=now, gpu_uuid=f"GPU-{card}", power_w=watts))
            lines.append(HostSample(sampled_at=now, host="node7", cpu_pct=30.0))
            self._append(self._run.host_journal("node7"), *lines)
            tick += 1
            while next_step <= now:
                old = steps[done % len(steps)]
                done += 1
                for rank in range(RANKS):
                    new = msgspec.structs.replace(old, rank=rank, step=done, ended_at=next_step, attempt=0)
                    self._append(self._run.rank_journal(rank), new)
                next_step += old.duration_s


def first_frame(report: Report, env: dict[str, str]) -> None:
    empty, ours = [], []
    for _ in range(7):  # interleaved, so that a busy moment hits both
        for times, args, words in ((empty, [sys.executable, "-c", EMPTY], "first frame"), (ours, PROGRAM, "1 Live")):
            with Terminal(args, env, SIZE) as terminal:
                times.append(terminal.wait(words) - terminal.began)
    report.figure("an empty Textual App: start to first frame", 1e3 * median(empty), "ms")
    report.figure("lorawatch: start to first frame", median(ours) / median(empty), "× empty", most=1.6)


def live_load(report: Report, env: dict[str, str]) -> None:
    run = new_run("bench-live")
    run.write_state(RunState(state="running", started_at=time.time(), recorder=ProcessId.of(os.getpid())))
    with Writer(run) as writer, Terminal([*PROGRAM, "attach", run.run_id], env, SIZE) as terminal:
        terminal.wait("step 2/")
        time.sleep(4)
        process = psutil.Process(terminal.process.pid)
        before, begun = process.cpu_times(), time.monotonic()
        mark = terminal.mark()
        time.sleep(25)
        after = process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        report.figure("CPU of Live with 8 GPUs at 5 Hz", 100 * spent / (time.monotonic() - begun), "% of core", most=8)
        seen: dict[str, float] = {}
        for at, data in terminal.pieces[mark:]:
            for words in writer.written.keys() - seen.keys():
                if words.encode() in data:
                    seen[words] = at
        late = [seen[w] - t for w, t in writer.written.items() if w in seen and seen[w] > t]
        report.figure("sample to screen, p95", 1e3 * p95(late), "ms", most=300)
        report.figure("  of so many samples", len(late), "")
        source = random.Random(1)
        opened, closed = [], []
        for _ in range(KEYS):
            time.sleep(0.1 + 0.2 * source.random())
            began = time.monotonic()
            opened.append(terminal.wait("Everywhere:", since=terminal.press("?")) - began)
            time.sleep(0.1 + 0.2 * source.random())
            began = time.monotonic()
            closed.append(terminal.wait("events", since=terminal.press("\x1b")) - began)
        report.figure("key to repaint under that load, p95", 1e3 * p95(opened), "ms", most=50)
        # A lone escape is told from a sequence's first byte by waiting, in every terminal program.
        report.figure("  escape to repaint, p95", 1e3 * p95(closed), "ms")
        report.figure("  RSS", process.memory_info().rss / 2**20, "MiB", most=200)
    run.write_state(RunState(state="completed", started_at=time.time() - 60, ended_at=time.time()))


def long_run() -> RunDir:
    """A run of 100,000 steps × 8 ranks and their samples: 1.2 million journal lines, all but the last in the history."""
    run = new_run("bench-long")
    begin = time.time() - LONG_STEPS * 0.5
    source = random.Random(2)
    for rank in range(RANKS):
        writer = JournalWriter(run.rank_journal(rank))
        writer.append(
            RankStarted(at=begin, attempt=0, rank=rank, local_rank=rank, world_size=RANKS, host="node7", pid=1,
                        device="cuda", gpu_uuid=f"GPU-{rank}", steps_total=LONG_STEPS * 2)
        )  # fmt: skip
        for n in range(1, LONG_STEPS + 1):
            writer.append(step(n, rank, ended_at=begin + 0.5 * n, loss=2 + source.random(), data_wait_s=0.001))
            if n % 1000 == 0:
                writer.flush()
        writer.flush()
        writer.close()
    samples = JournalWriter(run.host_journal("node7"))
    for tick in range(LONG_STEPS // 2):
        for card in range(RANKS):
            samples.append(
                GpuSample(sampled_at=begin + tick, gpu_uuid=f"GPU-{card}", power_w=400 + 100 * source.random(),
                          memory_used_bytes=60 << 30, utilization_pct=99.0, energy_j=450.0 * tick)
            )  # fmt: skip
        if tick % 1000 == 0:
            samples.flush()
    samples.flush()
    samples.close()
    run.write_state(RunState(state="running", started_at=begin, recorder=ProcessId.of(os.getpid())))
    ingest_run(run, deadline_s=600)
    return run


def many_runs() -> None:
    run = new_run("bench-many")
    run.write_state(RunState(state="completed", started_at=time.time() - 60, ended_at=time.time(), step=60))
    finish_run(run)
    with writing() as connection:
        for table in ("runs", "run_summary"):
            connection.execute(
                f"INSERT INTO {table} SELECT * REPLACE (run_id || '-' || n AS run_id) "
                f"FROM {table}, range({HISTORY_RUNS - 1}) t(n) WHERE run_id = ? ORDER BY n".replace(
                    "SELECT * REPLACE", "SELECT " + table + ".* REPLACE"
                ),
                [run.run_id],
            )


def histories(report: Report, env: dict[str, str]) -> None:
    run = long_run()
    times = []
    for _ in range(5):
        with Terminal([*PROGRAM, "attach", run.run_id], env, SIZE) as terminal:
            times.append(terminal.wait(f"step {LONG_STEPS:,}/".replace(",", "")) - terminal.began)
    report.figure("attach to a run of 1.2 M journal lines: start to full frame", median(times), "s", most=1)
    run.write_state(RunState(state="completed", started_at=time.time() - LONG_STEPS / 2, ended_at=time.time()))
    finish_run(run)
    many_runs()
    opened, run_opened = [], []
    for _ in range(5):
        with Terminal(PROGRAM, env, SIZE) as terminal:
            terminal.wait("H100")
            time.sleep(0.5)
            began = time.monotonic()
            opened.append(terminal.wait("runs shown", since=terminal.press("2")) - began)
            terminal.press("/")
            time.sleep(0.2)
            terminal.wait("of 10", since=terminal.press("bench-long\r"))
            time.sleep(0.5)
            began = time.monotonic()
            run_opened.append(terminal.wait("W per GPU", since=terminal.press("\r")) - began)
    report.figure(f"open Runs with {HISTORY_RUNS:,} runs", 1e3 * median(opened), "ms", most=300)
    report.figure("open a run of 100,000 steps × 8 ranks", 1e3 * median(run_opened), "ms", most=500)


def a_day(report: Report, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, str(DAY)], env=env, capture_output=True, text=True, check=True)
    early, late = (float(v) for v in done.stdout.split())
    report.figure("24 h of 8 GPUs at 5 Hz at speed: RSS growth after the first hour", late - early, "MiB", most=30)
    report.figure("  RSS at its end", late, "MiB", most=200)


def main() -> None:
    report = Report("screens")
    for work in (first_frame, live_load, histories, a_day):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORAWATCH_HOME"] = folder
            env = {**os.environ, **stub_env(Path(folder) / "stub", gpus=RANKS)}
            work(report, env)
    report.close()


if __name__ == "__main__":
    main()
