"""What Live looks like: one picture a state and size, of a recorded H100 run's lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from history import T0
from still import StillApp, cards, recorded, running, watching
from textual.pilot import Pilot

from lorawatch.run.directory import RunState
from lorawatch.watching.frame import Frame
from lorawatch.watching.watch import Watch

SIZES = [(80, 24), (120, 40), (160, 50)]


def failed() -> Frame:
    watch, now = watching(2)
    message = "rank 1: CUDA out of memory: 1.50 GiB wanted, 0.31 GiB free of 79.6 GiB"
    return watch.frame(
        now + 5, RunState(state="failed", failure="cuda_oom", message=message, started_at=T0 - 2, ended_at=now + 1)
    )


def stale() -> Frame:
    watch, now = watching(1)
    return watch.frame(now + 12, RunState(state="running", started_at=T0 - 2))


def lost() -> Frame:
    watch, now = watching(1)
    return watch.frame(now, RunState(state="running", started_at=T0 - 2), recorder_alive=False)


def empty() -> Frame:
    return replace(Watch(None, []).frame(T0), notice="no NVIDIA driver: libnvidia-ml.so.1 is not there")


def monitor() -> Frame:
    watch = Watch(None, cards(2))
    _, samples = recorded()
    for sample in samples:
        for index in range(2):
            watch.feed(msgspec.structs.replace(sample, gpu_uuid=f"GPU-{index}"))
    return watch.frame(samples[-1].sampled_at)


STATES: dict[str, Callable[[], Frame]] = {
    "1-gpu": lambda: running(1),
    "2-gpus": lambda: running(2),
    "8-gpus-straggler": lambda: running(8, straggler=3),
    "2-cpu-ranks": lambda: running(2, gpus=False),
    "failed": failed,
    "stale": stale,
    "lost": lost,
    "empty": empty,
    "monitor": monitor,
}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("state", STATES)
def test_live(snap_compare: Any, state: str, size: tuple[int, int]) -> None:
    app = StillApp(STATES[state]())

    async def settled(pilot: Pilot[Any]) -> None:
        await app.settle(pilot)

    assert snap_compare(app, terminal_size=size, run_before=settled)
