"""The screens at a standstill: no thread, no clock, no driver; what they show is what they are given."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from history import DATA, T0
from textual.pilot import Pilot

from lorawatch.run.directory import Gpu, RunInfo, RunState
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import AnyLine, Event, GpuSample, HostSample, PhaseChange, RankStarted, Step
from lorawatch.screens.app import FrameReady, LorawatchApp
from lorawatch.watching.frame import Frame
from lorawatch.watching.watch import Watch

HOST = "node7"
TOTAL = 85_520_809_984


class _Nobody:
    """In the watcher's place: takes every order and does nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_a, **_k: None


class StillApp(LorawatchApp):
    """The app with one frame; `background` still answers, so that the history can be shown."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.host = self._own_machine = self.machine_words = HOST
        self.frame = frame

    @functools.cached_property
    def watcher(self) -> Any:  # type: ignore[override]
        return _Nobody()

    async def settle(self, pilot: Pilot[Any]) -> None:
        """Show the frame, whatever else the screen mounts behind its first one."""
        await pilot.pause(0.1)
        self.post_message(FrameReady(self.frame))
        await pilot.pause(0.2)


def cards(count: int) -> list[Gpu]:
    return [
        Gpu(host=HOST, gpu_index=i, gpu_uuid=f"GPU-{i}", sku="NVIDIA H100 80GB HBM3", memory_total_bytes=TOTAL,
            used=True, power_limit_w=700.0)
        for i in range(count)
    ]  # fmt: skip


def info(ranks: int, gpus: list[Gpu], name: str = "exxact-8b") -> RunInfo:
    return RunInfo(run_id="0gq2zx6h", name=name, created_at=T0 - 2, host=HOST, user="u", world_size=ranks, gpus=gpus,
                   device="cuda" if gpus else "cpu")  # fmt: skip


@functools.cache
def recorded() -> tuple[tuple[Step, ...], tuple[GpuSample, ...]]:
    """Steps and samples of a run recorded on an H100, moved so that its first step begins at T0."""
    folder = DATA / "h100_run" / "0gq2zx6h" / "journal"
    lines: list[AnyLine] = [line for path in sorted(folder.glob("*.jsonl")) for line in JournalTail(path).records()]
    steps = [line for line in lines if isinstance(line, Step)]
    shift = T0 - (steps[0].ended_at - steps[0].duration_s)
    samples = [line for line in lines if isinstance(line, GpuSample) and line.sampled_at + shift > T0 - 2]
    return (
        tuple(msgspec.structs.replace(s, ended_at=s.ended_at + shift) for s in steps),
        tuple(msgspec.structs.replace(s, sampled_at=s.sampled_at + shift) for s in samples),
    )


def watching(ranks: int, *, gpus: bool = True, until: int = 40, straggler: int | None = None) -> tuple[Watch, float]:
    """A run of the recorded steps on every rank, up to a step; and the moment of that step's end."""
    devices = cards(ranks) if gpus else []
    watch = Watch(info(ranks, devices))
    steps, samples = recorded()
    now = steps[until - 1].ended_at + 0.05
    lines: list[tuple[float, AnyLine]] = [(T0, Event(at=T0 - 1, kind="started", message="exxact-8b started"))]
    for rank in range(ranks):
        uuid = f"GPU-{rank}" if gpus else None
        lines.append((T0 - 1, RankStarted(
            at=T0 - 1, attempt=0, rank=rank, local_rank=rank, world_size=ranks, host=HOST, pid=1, gpu_uuid=uuid,
            device="cuda" if gpus else "cpu", steps_total=60, flops_per_token=30.46e9, dtype="bfloat16",
            gpu_name="NVIDIA H100 80GB HBM3" if gpus else None)))  # fmt: skip
        lines.append((T0 - 0.5, PhaseChange(at=T0, attempt=0, rank=rank, name="training")))
        slower = 1.5 if rank == straggler else 1.0
        lines += [
            (s.ended_at, msgspec.structs.replace(s, rank=rank, gpu_uuid=uuid, duration_s=s.duration_s * slower))
            for s in steps[:until]
        ]
        if gpus:
            lines += [(s.sampled_at, msgspec.structs.replace(s, gpu_uuid=uuid)) for s in samples if s.sampled_at <= now]
    lines.append((now, HostSample(sampled_at=now, host=HOST, cpu_pct=12.0, memory_used_bytes=20 << 30,
                                  memory_total_bytes=128 << 30, disk_free_bytes=64 << 30)))  # fmt: skip
    for _, line in sorted(lines, key=lambda pair: pair[0]):
        watch.feed(line)
    return watch, now


def running(ranks: int, **more: Any) -> Frame:
    watch, now = watching(ranks, **more)
    return watch.frame(now, RunState(state="running", started_at=T0 - 2))
