"""Figures of the history: backlog, the 5 s cycle in a history of 20 million rows, and kill -9 while it is written.

`python tests/benchmarks/ingest.py`; about two minutes and 1 GB of disk.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import msgspec
from report import Report

from lorawatch.run.directory import Gpu, RunDir, RunInfo, RunState
from lorawatch.run.journal import JournalWriter
from lorawatch.run.records import GpuSample, HostSample, Record, Step
from lorawatch.storage.connection import reading, writing
from lorawatch.storage.ingest import ingest_run

GPUS = [f"GPU-30def27d-ab75-0851-92cd-87ab544e9b3{i}" for i in range(8)]
CYCLES = 100
KILLS = 50
ONCE = """
import sys, time
from pathlib import Path
from lorawatch.run.directory import RunDir
from lorawatch.storage.ingest import ingest_run
run = RunDir(Path(sys.argv[1]))
began = time.perf_counter()
rows = ingest_run(run, deadline_s=600).rows
seconds = time.perf_counter() - began
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(seconds, rows, status["VmHWM"].split()[0])
"""
LOOP = """
import sys, time
from pathlib import Path
from lorawatch.errors import HistoryError
from lorawatch.run.directory import RunDir
from lorawatch.storage.ingest import ingest_run
run = RunDir(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    try:
        ingest_run(run)
    except HistoryError:
        pass
    time.sleep(0.001)
"""


def gpu(tick: int, card: int, source: random.Random) -> GpuSample:
    slow = tick % 5 == 0
    return GpuSample(
        sampled_at=1.79e9 + 0.2 * tick,
        gpu_uuid=GPUS[card],
        power_w=round(source.gauss(450, 90), 3),
        power_average_w=round(source.gauss(450, 20), 3),
        energy_j=1e6 + 90.0 * tick if slow else None,
        memory_used_bytes=25_672_089_600,
        utilization_pct=float(source.randrange(101)),
        temperature_c=55.0 if slow else None,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        event_reasons=0,
        power_limit_w=700.0 if slow else None,
    )


def step(number: int, rank: int, source: random.Random) -> Step:
    return Step(
        attempt=0,
        rank=rank,
        step=number,
        ended_at=1.79e9 + 0.13 * number,
        duration_s=source.gauss(0.13, 0.01),
        tokens=1024,
        nonpad_tokens=1000,
        label_tokens=900,
        loss=source.random() + 1,
        grad_norm=source.random(),
        learning_rate=2e-4,
        data_wait_s=source.random() / 1e3,
        memory_allocated_bytes=21_390_000_000,
        memory_reserved_bytes=22_390_000_000,
        gpu_uuid=GPUS[rank],
    )


def host(tick: int) -> HostSample:
    return HostSample(
        sampled_at=1.79e9 + 0.2 * tick, host="h", cpu_pct=12.5, memory_used_bytes=7 << 30, memory_total_bytes=64 << 30
    )


def a_run() -> RunDir:
    cards = [
        Gpu(host="h", gpu_index=i, gpu_uuid=uuid, sku="NVIDIA H100 80GB HBM3", used=True) for i, uuid in enumerate(GPUS)
    ]
    info = RunInfo(
        run_id="", name="bench", created_at=time.time(), host="h", user="u", world_size=8, device="cuda", gpus=cards
    )
    run = RunDir.create(info)
    run.write_state(RunState(state="running", started_at=time.time()))
    return run


def write_seconds(run: RunDir, begin: int, seconds: int, source: random.Random) -> int:
    """What 8 GPUs at 5 Hz and 8 ranks at 7.5 steps a second write; the number of lines."""
    lines = 0
    lane: list[Record] = []
    for tick in range(5 * begin, 5 * (begin + seconds)):
        lane += [gpu(tick, card, source) for card in range(8)]
        lane.append(host(tick))
    steps = range(int(7.5 * begin), int(7.5 * (begin + seconds)))
    files = [(run.host_journal("h"), lane)]
    files += [(run.rank_journal(rank), [step(n, rank, source) for n in steps]) for rank in range(8)]
    for path, records in files:
        writer = JournalWriter(path, keep=10_000_000)
        for record in records:
            writer.append(record)
        assert writer.flush()
        writer.close()
        lines += len(records)
    return lines


def backlog(report: Report) -> None:
    """Two hours of such a run at once, in a process of its own; the best of three, since others use this machine too."""
    source = random.Random(1)
    rates, peaks = [], []
    for _ in range(3):
        run = a_run()
        lines = write_seconds(run, 0, 7200, source)
        done = subprocess.run(
            [sys.executable, "-c", ONCE, str(run.root)], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds, rows, peak_kib = done.stdout.split()
        assert int(rows) == lines
        rates.append(lines / float(seconds))
        peaks.append(int(peak_kib) / 1024)
    report.figure(f"backlog of {lines:,} lines", max(rates), "lines/s", least=500_000)
    report.figure("  slowest of three", min(rates), "lines/s")
    report.figure("  most memory of the process", max(peaks), "MB")


def fill(rows: int) -> None:
    with writing() as connection:
        connection.execute(
            "INSERT INTO gpu_samples SELECT 'old' || i // 100000, $1[1 + i % 8], make_timestamptz(1780000000000000 + i * 25000), "
            "400 + random() * 100, 450, CASE WHEN i % 40 < 8 THEN i / 8.0 END, 25672089600, 66, 50, 1980, 2619, 0, NULL "
            "FROM range($2) AS t (i)",
            [GPUS, rows * 7 // 10],
        )
        connection.execute(
            "INSERT INTO steps SELECT 'old' || i // 50000, 0, i % 8, i // 8, $1[1 + i % 8], "
            "make_timestamptz(1780000000000000 + (i // 8) * 130000), .13 + random() * .01, 1024, 1000, 900, 1 + random(), "
            "random(), 2e-4, 1e-4, 21e9, 22e9, 'train' FROM range($2) AS t (i)",
            [GPUS, rows - rows * 7 // 10],
        )


def cycles(report: Report) -> None:
    """The recorder's short write, open and close included."""
    fill(20_000_000)
    run, source = a_run(), random.Random(2)
    times = []
    for number in range(CYCLES):
        lines = write_seconds(run, 5 * number, 5, source)
        began = time.perf_counter()
        assert ingest_run(run).rows == lines
        times.append(1e3 * (time.perf_counter() - began))
        time.sleep(0.05)
    times.sort()
    report.figure(f"5 s cycle of {lines} lines into 20 M rows, median", times[CYCLES // 2], "ms", most=60)
    report.figure("  95th percentile", times[CYCLES * 95 // 100], "ms")
    report.figure("  slowest", times[-1], "ms")


def kills(report: Report) -> None:
    """Kill -9 at random moments while a writer appends, lines torn at random places."""
    run, source = a_run(), random.Random(3)
    number = 0
    encode = msgspec.json.Encoder().encode
    began = time.perf_counter()
    with open(run.rank_journal(0), "ab", buffering=0) as journal:
        for _ in range(KILLS):
            process = subprocess.Popen([sys.executable, "-c", LOOP, str(run.root)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            until = time.perf_counter() + source.uniform(0.02, 0.4)
            while time.perf_counter() < until:
                count = source.randrange(1, 80)
                data = b"".join(encode(step(n, 0, source)) + b"\n" for n in range(number, number + count))
                number += count
                cut = source.randrange(len(data))
                journal.write(data[:cut])
                time.sleep(0.003)
                journal.write(data[cut:])
            process.send_signal(signal.SIGKILL)
            process.wait()
    ingest_run(run)
    with reading() as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT step), coalesce(max(step), -1) FROM steps WHERE run_id = ?", [run.run_id]
        ).fetchone()
    assert row is not None
    count, distinct, last = row
    missing, twice = number - distinct, count - distinct
    assert last == number - 1
    report.figure(
        f"{KILLS} kills, {number:,} lines in {time.perf_counter() - began:.0f} s: lines missing",
        missing,
        "lines",
        most=0,
    )
    report.figure("  lines twice", twice, "lines", most=0)


def main() -> None:
    report = Report("history")
    for part in (backlog, cycles, kills):
        with tempfile.TemporaryDirectory() as home:
            os.environ["LORAWATCH_HOME"] = home
            part(report)
    report.close()


if __name__ == "__main__":
    main()
