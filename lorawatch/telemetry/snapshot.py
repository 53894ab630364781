"""What is known of the sampled GPUs right now: one frozen snapshot for displays and checks."""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.run.directory import Gpu
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
        for sample in (before, fast):
            if sample is not None:  # these two take turns
                if sample.sm_clock_mhz is not None:
                    values.sm_clock_mhz = sample.sm_clock_mhz
                if sample.event_reasons is not None:
                    values.event_reasons = sample.event_reasons
        if fast is not None:
            values.power_w = fast.power_w
            values.power_average_w = fast.power_average_w
            values.memory_used_bytes = fast.memory_used_bytes
            values.utilization_pct = fast.utilization_pct
        if slow is not None:
            values.energy_j = slow.energy_j
            values.temperature_c = slow.temperature_c
            values.memory_clock_mhz = slow.memory_clock_mhz
            values.power_limit_w = slow.power_limit_w
        return GpuNow(
            self.gpu,
            values,
            None if fast is None else max(at - fast.sampled_at, 0.0),
            None if slow is None else max(at - slow.sampled_at, 0.0),
            self.lost,
            self.processes,
        )
