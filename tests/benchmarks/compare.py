"""What the Compare screen costs on a long history: 10,000 runs with their summaries, and 100 million GPU samples.

`python tests/benchmarks/compare.py`; a minute and 2 GB of disk. The runs are copies of a recorded H100 run: 25 pieces of work
on 1, 2, 4 and 8 GPUs, together and separately, 50 repeats of each with some noise.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.nvml import stub_env
from history import DATA
from report import Report
from terminal import Terminal

from lorawatch.run.directory import RunDir
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import finish_run

RUNS = 10_000
GPU_SAMPLES = 100_000_000
RUN_ID = "0gq2zx6h"
SIZE = (160, 50)
PROGRAM = [str(Path(sys.executable).with_name("lorawatch"))]


def long_history(home: Path) -> None:
    """The runs, each with a summary and its GPUs, and the samples, in the home's history."""
    shutil.copytree(DATA / "h100_run" / RUN_ID, home / "runs" / RUN_ID)
    finish_run(RunDir(home / "runs" / RUN_ID))
    with writing() as connection:
        connection.execute("BEGIN")
        connection.execute(
            f"""
            CREATE TEMP TABLE plan AS
            SELECT n, '{RUN_ID}-' || lpad(n::VARCHAR, 5, '0') AS run_id, n % 25 AS work, [1, 2, 4, 8][1 + n // 25 % 4] AS ranks,
                CASE WHEN n // 100 % 2 = 1 THEN 'separate' ELSE 'ddp' END AS coupling
            FROM range({RUNS - 1}) AS t(n)
            """
        )
        connection.execute(
            f"""
            INSERT INTO runs SELECT r.* REPLACE (
                p.run_id AS run_id, p.ranks AS world_size, 'work-' || p.work AS name,
                r.created_at + to_minutes(p.n) AS created_at,
                json_merge_patch(r.recipe, '{{"train": {{"batch_size_per_gpu": ' || 1 + p.work || '}}}}') AS recipe)
            FROM runs AS r, plan AS p WHERE r.run_id = '{RUN_ID}' ORDER BY p.n
            """
        )
        connection.execute(
            f"""
            INSERT INTO run_summary SELECT s.* REPLACE (
                p.run_id AS run_id, s.workload || p.work AS workload, p.ranks AS world_size, p.ranks AS gpu_count,
                p.coupling AS coupling, s.tok_s * p.ranks ** 0.97 * (1 + sin(p.n) / 100) AS tok_s)
            FROM run_summary AS s, plan AS p WHERE s.run_id = '{RUN_ID}' ORDER BY p.n
            """
        )
        connection.execute(
            f"""
            INSERT INTO gpus SELECT g.* REPLACE (p.run_id AS run_id, i::INTEGER AS gpu_index, g.gpu_uuid || i AS gpu_uuid)
            FROM (SELECT * FROM gpus WHERE run_id = '{RUN_ID}' AND used) AS g, plan AS p, range(8) AS t(i)
            WHERE i < p.ranks ORDER BY p.n, i
            """
        )
        each = GPU_SAMPLES // RUNS
        connection.execute(
            f"""
            INSERT INTO gpu_samples BY NAME
            SELECT '{RUN_ID}-' || lpad((n // {each})::VARCHAR, 5, '0') AS run_id, 'GPU-' || n % 8 AS gpu_uuid,
                to_timestamp(1790000000 + n * 0.025) AS sampled_at, 400 + 100 * sin(n) AS power_w,
                (24 + n % 3) * 2::BIGINT ** 30 AS memory_used_bytes, 99.0 AS utilization_pct, 60.0 + n % 7 AS temperature_c
            FROM range({GPU_SAMPLES}) AS t(n)
            """
        )
        connection.execute("COMMIT")


def opening(report: Report, env: dict[str, str]) -> None:
    """From the key to the painted table: the first time in a program that has just been started."""
    times = []
    for _ in range(5):
        with Terminal(PROGRAM, env, SIZE) as terminal:
            terminal.wait("H100")
            time.sleep(0.5)
            began = time.monotonic()
            times.append(terminal.wait("8 × H100", since=terminal.press("4")) - began)
    report.figure(f"open Compare with {RUNS:,} runs", 1e3 * median(times), "ms", most=300)
    report.figure("  the slowest of 5", 1e3 * max(times), "ms")


def main() -> None:
    report = Report("compare")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORAWATCH_HOME"] = folder
        long_history(Path(folder))
        size = (Path(folder) / "history.duckdb").stat().st_size
        report.figure(f"a history of {GPU_SAMPLES / 1e6:.0f} M GPU samples", size / 2**30, "GiB")
        opening(report, {**os.environ, **stub_env(Path(folder) / "stub", gpus=8)})
    report.close()


if __name__ == "__main__":
    main()
