"""What the recorder costs beside eight GPUs at 10 Hz: a stub driver that replays a real H100 trace, an own command.

The whole recorder is measured, from outside: sampling, journals, heartbeat, ingest into the history, plain display.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from report import Report

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.nvml import stub_env

WARM_S, MEASURE_S = 8, 40


def main() -> None:
    report = Report("recorder beside 8 stub GPUs at 10 Hz")
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, **stub_env(Path(folder) / "stub", gpus=8), "LORAWATCH_HOME": f"{folder}/home"}
        code = f"import time; time.sleep({WARM_S + MEASURE_S + 5})"
        command = [sys.executable, "-m", "lorawatch", "--record", "--hz", "10", "--", sys.executable, "-c", code]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        recorder = psutil.Process(process.pid)
        time.sleep(WARM_S)
        before, started = recorder.cpu_times(), time.monotonic()
        peak = 0
        while time.monotonic() - started < MEASURE_S:
            peak = max(peak, recorder.memory_info().rss)
            time.sleep(1)
        after, seconds = recorder.cpu_times(), time.monotonic() - started
        used = after.user + after.system - before.user - before.system
        assert process.wait(60) == 0
        report.figure("of one core", 100 * used / seconds, "%", most=2)
        report.figure("RSS", peak / 2**20, "MB", most=120)
        os.environ["LORAWATCH_HOME"] = f"{folder}/home"
        from lorawatch.storage.sql import run_select

        query = "SELECT count(*), count(DISTINCT gpu_uuid) FROM gpu_samples WHERE utilization_pct IS NOT NULL"
        ((samples, gpus),) = run_select(query).rows
        report.figure(
            "GPU samples a second in the history", samples / (WARM_S + MEASURE_S + 5), "/s", least=0.95 * 10 * gpus
        )
    report.close()


if __name__ == "__main__":
    main()
