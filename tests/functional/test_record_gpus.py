"""Recording beside GPUs: a stub driver that replays a real H100's readings, everything else real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fakes import amd
from fakes.nvml import gpu_uuid, stub_env
from helpers import lorawatch, sql, the_run

SLEEP = [sys.executable, "-c", "import time; time.sleep(6)"]


def env_of(folder: Path, **more: object) -> dict[str, str]:
    stub = stub_env(folder, **more)  # type: ignore[arg-type]
    return {k: v for k, v in stub.items() if os.environ.get(k) != v}


def test_every_gpu_of_the_host_is_sampled_and_its_energy_counted(lorawatch_home: Path, tmp_path: Path) -> None:
    result = lorawatch("--record", "--hz", "10", "--", *SLEEP, env=env_of(tmp_path, gpus=2))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = sql(
        lorawatch_home,
        "SELECT gpu_uuid, count(power_w), min(power_w), max(power_w), max(energy_j) - min(energy_j), "
        "max(memory_used_bytes) FROM gpu_samples GROUP BY gpu_uuid ORDER BY gpu_uuid",
    )
    assert {row[0] for row in rows} == {gpu_uuid(0), gpu_uuid(1)}
    for _, samples, low, high, energy, memory in rows:
        assert samples >= 50
        assert 100 < low <= high < 750
        assert energy > 500
        assert memory > 2**30
    gpus = sql(lorawatch_home, "SELECT sku, power_limit_w, used FROM gpus ORDER BY gpu_index")
    assert gpus == [("NVIDIA H100 80GB HBM3", 700.0, False)] * 2
    info = json.loads((the_run(lorawatch_home).root / "run.json").read_text())
    assert info["driver_version"]


def test_a_gpu_that_falls_off_the_bus_is_said_and_the_other_goes_on(lorawatch_home: Path, tmp_path: Path) -> None:
    result = lorawatch("--record", "--", *SLEEP, env=env_of(tmp_path, gpus=2, lost=(1, 2.0)))
    assert result.returncode == 0
    assert "is lost" in result.stdout
    counts = sql(
        lorawatch_home, "SELECT gpu_uuid, count(power_w) FROM gpu_samples GROUP BY gpu_uuid ORDER BY count(power_w)"
    )
    assert counts[0][0] == gpu_uuid(1)
    assert counts[1][1] >= 25 > counts[0][1]


@pytest.mark.parametrize("index", ["5", "0,5"])
def test_a_gpu_index_that_is_not_there_starts_nothing(lorawatch_home: Path, tmp_path: Path, index: str) -> None:
    result = lorawatch("--record", "tiny", "--gpus", index, env=env_of(tmp_path, gpus=2))
    assert result.returncode == 3
    assert "GPU 5 is not in this machine" in result.stderr
    assert "H100" in result.stderr
    assert not (lorawatch_home / "runs").exists()


def test_amd_gpus_are_sampled_into_the_history(lorawatch_home: Path, tmp_path: Path) -> None:
    env = amd.no_nvidia(tmp_path) | amd.amd_env(("mi300x", "r9700"))
    sleep = [sys.executable, "-c", "import time; time.sleep(4)"]
    result = lorawatch("--record", "--hz", "10", "--json", "--", *sleep, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    for line in result.stdout.splitlines():
        json.loads(line)
    rows = sql(
        lorawatch_home,
        "SELECT gpu_uuid, count(power_w), max(power_w), (max(energy_j) - min(energy_j)) "
        "/ (epoch(max(sampled_at) FILTER (energy_j > 0)) - epoch(min(sampled_at) FILTER (energy_j > 0))), "
        "bit_or(event_reasons) FROM gpu_samples GROUP BY gpu_uuid ORDER BY gpu_uuid",
    )
    assert [row[0] for row in rows] == [amd.gpu_uuid(0), amd.gpu_uuid(1)]
    assert [row[1] >= 30 for row in rows] == [True, True]
    assert [row[2] for row in rows] == [561, 240]
    assert rows[0][3] == pytest.approx(561, rel=0.02)
    assert rows[1][3] is None
    assert [row[4] for row in rows] == [4, None]
    gpus = sql(lorawatch_home, "SELECT sku, power_limit_w FROM gpus ORDER BY gpu_index")
    assert gpus == [("AMD Instinct MI300X", 750.0), ("AMD Radeon AI PRO R9700", 300.0)]
    info = json.loads((the_run(lorawatch_home).root / "run.json").read_text())
    assert info["driver_version"] == "6.12.12"
    assert {gpu["vendor"] for gpu in info["gpus"]} == {"amd"}
