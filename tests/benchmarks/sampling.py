"""What sampling costs beside eight GPUs at 10 Hz, and how punctual it is.

The sampler alone, journaling to a file, in a process of its own under a stub driver that takes an H100's time for its
slow calls and replays an H100's readings. `--real` samples the machine's own GPUs instead: what the driver's calls
themselves cost in CPU time shows only there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Report

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.nvml import COMPILED, call_counts, stub_env

GPUS, HZ, SECONDS = 8, 10, float(os.environ.get("LORAWATCH_BENCH_S", "20"))
FAST_CALLS = (
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetClockInfo:sm",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)

CHILD = """
import json, os, sys, time
from pathlib import Path
import psutil
from lorawatch.run.journal import JournalWriter
from lorawatch.telemetry.opening import open_driver
from lorawatch.telemetry.sampler import Sampler

folder, hz, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
driver = open_driver()
gpus = driver.gpus("bench")
journal = JournalWriter(folder / "host.jsonl")
events = []
sampler = Sampler(gpus, driver, sample_hz=hz, host="bench", write=journal.append, on_event=events.append,
                  worker_pids=lambda: [os.getpid()], disk=folder)
me = psutil.Process()
sampler.start()
before, started = me.cpu_times(), time.monotonic()
while time.monotonic() - started < seconds:
    time.sleep(0.2)
    journal.flush()
after, wall = me.cpu_times(), time.monotonic() - started
stopped = sampler.stop(2.0)
journal.close()
timing = sampler.timing
print(json.dumps({
    "cpu": 100 * (after.user + after.system - before.user - before.system) / wall,
    "rss": me.memory_info().rss / 2**20,
    "ticks": timing.ticks, "missed": timing.missed, "late": timing.late, "worst": timing.worst_late_s,
    "on_time": timing.on_time, "events": len(events), "stopped": stopped, "gpus": len(gpus),
}))
"""


def main() -> None:
    real = "--real" in sys.argv
    report = Report(f"sampling {'this machine' if real else f'{GPUS} stub GPUs'} at {HZ} Hz for {SECONDS:.0f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = subprocess.run(
            [sys.executable, "-c", CHILD, name, str(HZ), str(SECONDS)],
            env={**os.environ, **({} if real else stub_env(folder, gpus=GPUS, trace=COMPILED))},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        figures = json.loads(result.stdout)
        gpus = figures["gpus"]
        counts = {} if real else call_counts(folder)
        lines = (folder / "host.jsonl").read_text().count('"t":"gpu"')
    report.figure("GPUs", gpus, "")
    # of eight GPUs; fewer real ones have their part of it
    report.figure("of one core", figures["cpu"], "%", most=2 if not real else max(2 * gpus / GPUS, 0.5))
    report.figure("RSS", figures["rss"], "MB", most=120)
    if not real:
        # listing the GPUs asked each for its memory once
        calls = sum(sum(counts.get(f, ())) for f in FAST_CALLS) - gpus
        report.figure("fast-lane NVML calls a GPU and tick", calls / (figures["ticks"] * gpus), "calls", most=4)
        report.figure("PCIe throughput calls", sum(counts.get("nvmlDeviceGetPcieThroughput", ())), "calls", most=0)
    report.figure("ticks on time ± 5 ms", 100 * figures["on_time"], "%", least=99.9)
    report.figure("worst delay of a tick", 1000 * figures["worst"], "ms")
    report.figure("ticks missed", figures["missed"], "ticks", most=0)
    report.figure("GPU lines a second", lines / SECONDS, "/s", least=0.98 * gpus * HZ)
    report.close()


if __name__ == "__main__":
    main()
