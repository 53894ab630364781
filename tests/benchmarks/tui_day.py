"""A day of a live run with 8 GPUs at 5 Hz, at speed, drawn once a minute; prints RSS in MiB after an hour and at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from history import make_run, step

from lorawatch.run.directory import Gpu, RunState
from lorawatch.run.records import GpuSample, HostSample, RankStarted
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.live.screen import LiveScreen
from lorawatch.watching.watch import Watch

HOURS = 24


async def main() -> None:
    cards = [
        Gpu(
            host="h",
            gpu_index=i,
            gpu_uuid=f"GPU-{i}",
            sku="NVIDIA H100 80GB HBM3",
            memory_total_bytes=80 << 30,
            used=True,
        )
        for i in range(8)
    ]
    watch = Watch(make_run("day", ranks=8, gpus=cards).info())
    process = psutil.Process()
    begin = time.time() - HOURS * 3600
    early = 0.0
    app = LorawatchApp()
    async with app.run_test(size=(160, 50)) as pilot:
        app.watcher.stop()
        for rank in range(8):
            watch.feed(
                RankStarted(at=begin, attempt=0, rank=rank, local_rank=rank, world_size=8, host="h", pid=1,
                            device="cuda", gpu_uuid=f"GPU-{rank}", steps_total=200_000)
            )  # fmt: skip
        number = 0
        for tick in range(HOURS * 3600 * 5):
            at = begin + tick / 5
            for card in range(8):
                watch.feed(
                    GpuSample(sampled_at=at, gpu_uuid=f"GPU-{card}", power_w=300.0 + tick % 97, memory_used_bytes=60 << 30,
                              utilization_pct=99.0, temperature_c=60.0, sm_clock_mhz=1980, event_reasons=0,
                              energy_j=60.0 * tick, power_limit_w=700.0)
                )  # fmt: skip
            watch.feed(HostSample(sampled_at=at, host="h", cpu_pct=10.0))
            if tick % 3 == 0:
                number += 1
                for rank in range(8):
                    watch.feed(step(number, rank, ended_at=at, duration_s=0.6, loss=2.0 + number % 7))
            if tick % 300 == 0:
                screen = app.screen
                assert isinstance(screen, LiveScreen)
                screen.show(watch.frame(at, RunState(state="running", started_at=begin)))
                await pilot.pause()
            if tick == 5 * 3600:
                early = process.memory_info().rss
    print(early / 2**20, process.memory_info().rss / 2**20)


asyncio.run(main())
