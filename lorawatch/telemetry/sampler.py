"""Samples GPUs and host beside a run: two lanes on the driver, one on the host, and a watch over all three.

A driver's calls differ a thousandfold in cost, so each lane has only calls of its own kind: the fast lane those of a few
microseconds, the slow lane the energy counter (milliseconds) and what changes slowly. A call that hangs holds up its
own lane only; the others go on, the watch reports it, and nothing waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lorawatch.analysis.staleness import stale_age
from lorawatch.run.directory import Gpu
from lorawatch.run.metrics import of_lane
from lorawatch.run.records import Event, EventKind, GpuSample, HostSample, Record, Severity
from lorawatch.telemetry.driver import GpuDriver, GpuLost
from lorawatch.telemetry.host import HostReader
from lorawatch.telemetry.lanes import Lane, Timing
from lorawatch.telemetry.snapshot import GpuNow, Snapshot, Watched

__all__ = ["GpuNow", "Sampler", "Snapshot"]

MAX_HZ = 10.0
SLOW_PERIOD_S = 1.0
UNDATED_S = 0.25
_WATCH_PERIOD_S = 0.5
_FAST, _BY_TURNS, _SLOW = of_lane("fast"), of_lane("fast", "turns"), of_lane("slow")


class Sampler:
    """Samples until it is stopped.

    Journal lines: the fast lane writes one GpuSample a GPU and tick, the slow lane one a GPU and second, stamped at the
    energy reading; an extra line at a window's edge has the energy alone. `lorawatch.run.metrics` says which metrics are
    on which lane's lines; what was not read in a tick is absent from its line. The host lane writes one HostSample a second.

    Events: `gpu_lost` and `gpu_memory_errors` (detail `gpu_uuid`), `telemetry_stale` and `telemetry_back` (detail
    `lane`, `seconds`, and `gpu_uuid` where a GPU's reading hangs), `telemetry_error`.

    Args:
        gpus: The GPUs to sample, used by the run or not; those the driver does not know are left out.
        driver: The driver; None samples the host alone.
        sample_hz: Rate of the fast lane, at most 10.
        host: The host's name, for its samples.
        write: Takes each sample; called from all lanes, must not block.
        on_event: Takes each event; called from all lanes, must not block.
        worker_pids: Gives the pids of every process of the run.
        disk: A folder on the file system whose free space matters.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        driver: GpuDriver | None,
        *,
        sample_hz: float,
        host: str,
        write: Callable[[Record], None],
        on_event: Callable[[Event], None],
        worker_pids: Callable[[], Sequence[int]],
        disk: Path,
    ) -> None:
        self._write = write
        self._on_event = on_event
        self._closed = False
        self._lock = threading.Lock()
        self._failed: set[str] = set()
        devices = ((g, driver.device(g.gpu_uuid)) for g in gpus) if driver else ()
        self._watched = [Watched(g, d) for g, d in devices if d is not None]
        self._host_sample: HostSample | None = None
        self._host_reader = HostReader(host, worker_pids, disk)
        self._fast = Lane("power and memory readings", 1 / min(sample_hz, MAX_HZ), self._fast_tick)
        self._slow = Lane(
            "energy readings", SLOW_PERIOD_S, self._slow_tick, on_wake=self._read_energy, on_end=self._read_energy
        )
        self._host = Lane("host readings", SLOW_PERIOD_S, self._host_tick)
        self._gpu_lanes = [self._fast, self._slow] if self._watched else []
        self._watch = Lane("watch", _WATCH_PERIOD_S, self._watch_tick)
        self._stale: dict[str, float] = {}

    def start(self) -> None:
        """Begin sampling; returns at once."""
        for lane in (*self._gpu_lanes, self._host, self._watch):
            lane.start()

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End sampling, with a last reading of the energy counters.

        Args:
            timeout_s: How long to wait in all; a lane inside a hung call is left behind and writes nothing more.

        Returns:
            Whether every lane has ended, so that the driver may be closed.
        """
        deadline = time.monotonic() + timeout_s
        lanes = (*self._gpu_lanes, self._host, self._watch)
        for lane in lanes:
            lane.stop()
        ended = [lane.join(deadline - time.monotonic()) for lane in lanes]
        with self._lock:
            self._closed = True
        return all(ended)

    def request_energy(self) -> None:
        """Read all energy counters as soon as the slow lane is free: for a window's edge. Returns at once."""
        self._slow.wake()

    def latest(self) -> Snapshot:
        """The last known readings with their ages; cheap, for any thread."""
        at = time.time()
        return Snapshot(at, tuple(w.now(at) for w in self._watched), self._host_sample, self.stale_s())

    def stale_s(self) -> float:
        """By how many seconds the GPU readings are overdue; 0 while all is well or there is no GPU."""
        return max((lane.behind_s() for lane in self._gpu_lanes), default=0.0)

    @property
    def timing(self) -> Timing:
        """How punctual the fast lane has been."""
        return self._fast.timing

    # --- what the lanes do

    def _fast_tick(self, number: int) -> None:
        for watched in self._watched:
            if watched.lost or self._fast.stopping:
                continue
            self._fast.busy_with = watched.gpu.gpu_uuid
            device = watched.device
            try:
                power, average = device.power()
                sample = GpuSample(sampled_at=time.time(), gpu_uuid=device.uuid, power_w=power, power_average_w=average)
                for metric in (*_FAST, _BY_TURNS[number % len(_BY_TURNS)]):
                    setattr(sample, metric.column, device.read(metric.column))
            except GpuLost as lost:
                self._lose(watched, lost)
                continue
            except Exception as error:  # noqa: BLE001 - a reading gone wrong must not end the lane
                self._fault(self._fast, error)
                continue
            watched.fast_before, watched.fast = watched.fast, sample
            self._emit(sample)
        self._fast.busy_with = None

    def _slow_tick(self, number: int) -> None:
        self._read_slow(complete=True)

    def _read_energy(self) -> None:
        self._read_slow(complete=False)

    def _read_slow(self, *, complete: bool) -> None:
        for watched in self._watched:
            if watched.lost:
                continue
            self._slow.busy_with = watched.gpu.gpu_uuid
            device = watched.device
            try:
                before = time.time()
                energy = device.energy()
                after = time.time()
                # The counter's value belongs to some moment within the call: its middle. After a long one it is not known
                # which, and a joule without its moment would falsify a window.
                dated = after - before < UNDATED_S
                sample = GpuSample(
                    sampled_at=(before + after) / 2 if dated else after,
                    gpu_uuid=device.uuid,
                    energy_j=energy if dated else None,
                )
                if complete:
                    for metric in _SLOW:
                        setattr(sample, metric.column, device.read(metric.column))
                    watched.processes = device.processes() or ()
                    self._check_memory(watched, device.uncorrected_errors())
            except GpuLost as lost:
                self._lose(watched, lost)
                continue
            except Exception as error:  # noqa: BLE001 - a reading gone wrong must not end the lane
                self._fault(self._slow, error)
                continue
            if complete:
                watched.slow = sample
            if complete or sample.energy_j is not None:
                self._emit(sample)
        self._slow.busy_with = None

    def _host_tick(self, number: int) -> None:
        try:
            sample = self._host_reader.read()
        except Exception as error:  # noqa: BLE001 - a reading gone wrong must not end the lane
            self._fault(self._host, error)
            return
        self._host_sample = sample
        self._emit(sample)

    def _watch_tick(self, number: int) -> None:
        for lane in (*self._gpu_lanes, self._host):
            behind = lane.behind_s()
            since = self._stale.get(lane.name)
            if since is None and stale_age(behind) is not None:
                self._stale[lane.name] = lane.beat
                self._say_stale(lane, behind)
            elif since is not None and lane.beat > since:
                del self._stale[lane.name]
                self._event(
                    "telemetry_back",
                    f"{lane.name} are back after {lane.beat - since:.1f} s",
                    detail={"lane": lane.name, "seconds": round(lane.beat - since, 1)},
                )

    # --- what they report

    def _say_stale(self, lane: Lane, behind: float) -> None:
        detail: dict[str, object] = {"lane": lane.name, "seconds": round(behind, 1)}
        message = f"no {lane.name} for {behind:.1f} s"
        if lane.busy_with is not None:
            detail["gpu_uuid"] = lane.busy_with
            message += f": the driver does not answer for {lane.busy_with}"
        self._event("telemetry_stale", message, severity="warning", detail=detail)

    def _lose(self, watched: Watched, lost: GpuLost) -> None:
        with self._lock:  # both lanes may meet it at once
            if watched.lost:
                return
            watched.lost = True
        gpu = watched.gpu
        self._event(
            "gpu_lost",
            f"GPU {gpu.gpu_index} ({gpu.sku}) is lost: {lost.reason}",
            severity="error",
            detail={"gpu_uuid": gpu.gpu_uuid, "gpu_index": gpu.gpu_index},
        )

    def _check_memory(self, watched: Watched, errors: int | None) -> None:
        before, watched.errors = watched.errors, errors
        if errors is None or before is None or errors <= before:
            return
        gpu = watched.gpu
        self._event(
            "gpu_memory_errors",
            f"GPU {gpu.gpu_index} had {errors - before} memory error(s) that ECC could not correct",
            severity="warning",
            detail={"gpu_uuid": gpu.gpu_uuid, "errors": errors - before},
        )

    def _fault(self, lane: Lane, error: Exception) -> None:
        """Say once a lane and kind of error that its readings fail."""
        text = f"{lane.name}: {type(error).__name__}: {error}"
        if text in self._failed or len(self._failed) > 20:
            return
        self._failed.add(text)
        self._event("telemetry_error", text, severity="warning", detail={"lane": lane.name})

    def _event(
        self, kind: EventKind, message: str, *, severity: Severity = "info", detail: dict[str, object] | None = None
    ) -> None:
        if not self._closed:
            self._on_event(Event(at=time.time(), kind=kind, severity=severity, message=message, detail=detail))

    def _emit(self, sample: Record) -> None:
        if not self._closed:
            self._write(sample)
