"""The host's readings: CPU, memory, the run's processes, free disk, and the CPU packages' energy where readable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from lorawatch.run.records import HostSample

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """The energy counters of the CPU packages (Intel's and AMD's RAPL, through Linux's powercap).

    Usually only root may read them; then `read` returns None. Their counters wrap within minutes under load, so they
    must be read more often than that.

    Args:
        root: Where the kernel shows its power zones.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[_Zone] = []
        try:
            folders = sorted(root.glob("intel-rapl:*"))
        except OSError:
            return
        for folder in folders:
            try:
                # sub-zones (cores, memory) lie inside their package's figure
                if (folder / "name").read_text().startswith("package"):
                    largest = int((folder / "max_energy_range_uj").read_text())
                    self._zones.append(_Zone(folder / "energy_uj", largest))
            except (OSError, ValueError):
                continue

    @property
    def packages(self) -> int:
        """Power zones of whole packages, readable or not."""
        return len(self._zones)

    def read(self) -> float | None:
        """Joules of all packages together, growing without wraps; None where any of them cannot be read."""
        if not self._zones:
            return None
        try:
            return sum(zone.read() for zone in self._zones) / 1e6
        except (OSError, ValueError):
            return None


class _Zone:
    """One counter in microjoules, unwrapped."""

    def __init__(self, path: Path, largest: int) -> None:
        self._path = path
        self._largest = largest
        self._wrapped = 0
        self._last = 0

    def read(self) -> int:
        value = int(self._path.read_text())
        if value < self._last:
            self._wrapped += self._largest
        self._last = value
        return self._wrapped + value


class HostReader:
    """Reads the host once a second.

    Args:
        host: Its name, for the samples.
        worker_pids: Gives the pids of every process of the run, helpers included.
        disk: A folder on the file system whose free space matters.
        rapl: The energy counters.
    """

    def __init__(
        self, host: str, worker_pids: Callable[[], Sequence[int]], disk: Path, *, rapl: Rapl | None = None
    ) -> None:
        self._host = host
        self._worker_pids = worker_pids
        self._disk = disk
        self._rapl = Rapl() if rapl is None else rapl
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._read_at: float | None = None
        psutil.cpu_percent()  # from here to the first reading

    def read(self) -> HostSample:
        """One sample; what cannot be read is None."""
        memory = psutil.virtual_memory()
        workers_cpu, workers_rss = self._workers()
        return HostSample(
            sampled_at=time.time(),
            host=self._host,
            cpu_pct=psutil.cpu_percent(),
            memory_used_bytes=memory.total - memory.available,  # what no process could have any more
            memory_total_bytes=memory.total,
            workers_cpu_pct=workers_cpu,
            workers_rss_bytes=workers_rss,
            disk_free_bytes=self._disk_free(),
            package_energy_j=self._rapl.read(),
        )

    def _workers(self) -> tuple[float | None, int | None]:
        """CPU percent of one core and resident bytes over the run's processes; memory they share counts in each."""
        now = time.monotonic()
        rss = 0
        used = 0.0
        cpu_s: dict[int, float] = {}
        processes: dict[int, psutil.Process] = {}
        for pid in self._worker_pids():
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:
                continue  # it ended between being listed and being read
            total = times.user + times.system
            # a process first met now gives its CPU time from the next reading on
            used += max(total - self._cpu_s.get(pid, total), 0.0)
            rss += memory.rss
            cpu_s[pid] = total
            processes[pid] = process
        before, self._read_at = self._read_at, now
        self._cpu_s, self._processes = cpu_s, processes
        if not processes:
            return None, None
        return (None if before is None or now <= before else 100 * used / (now - before)), rss

    def _disk_free(self) -> int | None:
        try:
            status = os.statvfs(self._disk)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize
