"""What is known of the sampled GPUs right now: one frozen snapshot for displays and checks."""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.run.directory import Gpu
from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import GpuSample, HostSample
from lorawatch.telemetry.driver import GpuDevice, GpuProcess


@dataclass(frozen=True, slots=True)
class GpuNow:
    """The last known readings of a GPU.

    Attributes:
        gpu: Which one.
        values: The last reading of each metric; `sampled_at` is the fast lane's.
        fast_age_s: Age of power, memory, utilization; None before the first.
        slow_age_s: Age of energy, temperature, limit; None before the first.
        lost: The driver no longer reaches it.
        processes: Who computes on it.
    """

    gpu: Gpu
    values: GpuSample
    fast_age_s: float | None
    slow_age_s: float | None
    lost: bool
    processes: tuple[GpuProcess, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything sampled, as last known."""

    at: float
    gpus: tuple[GpuNow, ...]
    host: HostSample | None
    stale_s: float


class Watched:
    """A GPU under the lanes. Each attribute has one writing thread; readers take what is there."""

    __slots__ = ("device", "errors", "fast", "fast_before", "gpu", "lost", "processes", "slow")

    def __init__(self, gpu: Gpu, device: GpuDevice) -> None:
        self.gpu = gpu
        self.device = device
        self.fast: GpuSample | None = None
        self.fast_before: GpuSample | None = None
        self.slow: GpuSample | None = None
        self.processes: tuple[GpuProcess, ...] = ()
        self.errors: int | None = None
        self.lost = False

    def now(self, at: float) -> GpuNow:
        """The last known readings, seen at unix time `at`."""
        fast, before, slow = self.fast, self.fast_before, self.slow
        values = GpuSample(sampled_at=fast.sampled_at if fast else 0.0, gpu_uuid=self.gpu.gpu_uuid)
        for metric in GPU_METRICS:
            sample = slow if metric.lane == "slow" else fast
            value = metric.value(sample)
            if value is None and metric.taken == "turns":  # then it is on the line before
                value = metric.value(before)
            setattr(values, metric.column, value)
        return GpuNow(
            self.gpu,
            values,
            None if fast is None else max(at - fast.sampled_at, 0.0),
            None if slow is None else max(at - slow.sampled_at, 0.0),
            self.lost,
            self.processes,
        )
