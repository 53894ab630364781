"""The host's readings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorawatch.telemetry.host import HostReader, Rapl


def zone(root: Path, name: str, label: str, energy: str, largest: int = 1000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    (folder / "energy_uj").write_text(energy + "\n")
    return folder / "energy_uj"


def test_rapl_sums_packages_and_leaves_their_parts_out(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "2000000")
    zone(tmp_path, "intel-rapl:1", "package-1", "3000000")
    zone(tmp_path, "intel-rapl:0:0", "core", "900000")
    zone(tmp_path, "intel-rapl:2", "psys", "7000000")
    rapl = Rapl(tmp_path)
    assert rapl.packages == 2
    assert rapl.read() == pytest.approx(5.0)


def test_rapl_goes_on_growing_when_the_counter_wraps(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", "0", largest=1_000_000)
    rapl = Rapl(tmp_path)
    read = []
    for value in (900_000, 100_000, 950_000, 50_000):
        counter.write_text(str(value))
        read.append(rapl.read())
    assert read == pytest.approx([0.9, 1.1, 1.95, 2.05])


@pytest.mark.parametrize("content", ["", "nonsense"])
def test_rapl_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "1")
    zone(tmp_path, "intel-rapl:1", "package-1", content)
    assert Rapl(tmp_path).read() is None


def test_no_rapl_is_none(tmp_path: Path) -> None:
    assert Rapl(tmp_path / "absent").read() is None
    assert Rapl(tmp_path).packages == 0


def test_reads_the_host(tmp_path: Path) -> None:
    reader = HostReader("h", list, tmp_path, rapl=Rapl(tmp_path))
    sample = reader.read()
    assert sample.host == "h"
    assert sample.sampled_at == pytest.approx(time.time(), abs=5)
    assert sample.cpu_pct is not None
    assert 0 <= sample.cpu_pct <= 100
    assert sample.memory_used_bytes is not None
    assert sample.memory_total_bytes is not None
    assert 0 < sample.memory_used_bytes < sample.memory_total_bytes
    assert sample.disk_free_bytes is not None
    assert sample.disk_free_bytes > 0
    assert sample.workers_cpu_pct is None
    assert sample.workers_rss_bytes is None
    assert sample.package_energy_j is None


def test_a_folder_that_is_gone_has_no_free_space(tmp_path: Path) -> None:
    assert HostReader("h", list, tmp_path / "gone", rapl=Rapl(tmp_path)).read().disk_free_bytes is None


def test_sums_the_workers_and_survives_their_end(tmp_path: Path) -> None:
    busy = "x = bytearray(64 << 20)\nwhile True: pass"
    workers = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    try:
        pids = [w.pid for w in workers] + [2**22 + 1]  # no pid is that large
        reader = HostReader("h", lambda: pids, tmp_path, rapl=Rapl(tmp_path))
        time.sleep(0.5)
        first = reader.read()
        assert first.workers_cpu_pct is None  # no difference yet
        assert first.workers_rss_bytes is not None
        assert first.workers_rss_bytes > 2 * 64 << 20
        time.sleep(1)
        second = reader.read()
        assert second.workers_cpu_pct is not None
        assert 20 < second.workers_cpu_pct <= 205
        for worker in workers:
            worker.kill()
            worker.wait()
        assert reader.read().workers_rss_bytes is None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_a_process_met_late_does_not_bring_its_past(tmp_path: Path) -> None:
    pids: list[int] = [os.getppid()]
    reader = HostReader("h", lambda: pids, tmp_path, rapl=Rapl(tmp_path))
    reader.read()
    pids.append(os.getpid())  # pytest has used seconds of CPU time by now
    time.sleep(0.05)
    cpu = reader.read().workers_cpu_pct
    assert cpu is not None
    assert cpu < 400
