"""What the sampler writes while all is well."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from fakes.nvml import COMPILED, call_counts, gpu_uuid, stub_env
from fakes.sampling import sample

FAST_CALLS = (
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetClockInfo:sm",
    "nvmlDeviceGetCurrentClocksEventReasons",
)


def test_one_gpu(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, trace=COMPILED), 2.6, hz=5)
    assert 12 <= len(got.fast) <= 15
    for line in got.fast:
        assert line["gpu_uuid"] == gpu_uuid(0)
        assert 500 < line["power_w"] < 800
        assert line["power_average_w"] > 200
        assert 20 << 30 < line["memory_used_bytes"] < 26 << 30
        assert ("sm_clock_mhz" in line) != ("event_reasons" in line)  # by turns
        assert not {"energy_j", "temperature_c", "power_limit_w", "memory_clock_mhz"} & line.keys()
    assert 3 <= len(got.slow) <= 4  # at 0, 1, 2 s and the last reading of the energy
    for line in got.slow[:-1]:
        assert line["power_limit_w"] == 700
        assert line["temperature_c"] > 40
        assert line["memory_clock_mhz"] == 2619
    assert [b["energy_j"] > a["energy_j"] for a, b in pairwise(got.slow)] == [True] * (len(got.slow) - 1)
    # the counter's differences are the trace's power
    first, last = got.slow[0], got.slow[-1]
    watts = (last["energy_j"] - first["energy_j"]) / (last["sampled_at"] - first["sampled_at"])
    assert watts == pytest.approx(690, rel=0.1)
    assert got.events == []
    assert got.more["ended"] is True
    (latest,) = got.more["latest"]
    assert {"power_w", "sm_clock_mhz", "event_reasons", "energy_j", "power_limit_w"} <= latest["values"].keys()


def test_eight_gpus_take_four_calls_a_gpu_and_tick(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=8), 3.0)
    ticks = got.more["ticks"]
    assert Counter(line["gpu_uuid"] for line in got.fast) == {gpu_uuid(i): ticks for i in range(8)}
    counts = call_counts(tmp_path)
    for gpu in range(8):
        listing = 1  # open_nvml's list reads each GPU's memory once
        assert sum(counts[f][gpu] for f in FAST_CALLS) - listing == 4 * ticks
        # the SM clock and the event reasons take turns
        clock, reasons = counts["nvmlDeviceGetClockInfo:sm"][gpu], counts["nvmlDeviceGetCurrentClocksEventReasons"][gpu]
        assert abs(clock - reasons) <= 1
    assert "nvmlDeviceGetPcieThroughput" not in counts
    assert "nvmlDeviceGetPowerUsage" not in counts
    # 8 energy calls of 3 ms a second run beside the fast lane, not in it
    assert got.more["missed"] == 0


def test_an_energy_reading_can_be_asked_for_at_a_windows_edge(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=8), 2.0, ask_at=0.45)
    asked = got.more["asked"]
    # before the next tick, whose lines have a temperature
    tick = next(x["sampled_at"] for x in got.slow if x["sampled_at"] > asked and "temperature_c" in x)
    near = [x for x in got.slow if asked <= x["sampled_at"] < tick]
    assert [x["gpu_uuid"] for x in near] == [gpu_uuid(i) for i in range(8)]
    assert all("energy_j" in x and "temperature_c" not in x for x in near)


def test_a_card_without_an_energy_counter(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=2, errors={"nvmlDeviceGetTotalEnergyConsumption@1": 3}), 2.2, ask_at=0.5)
    with_counter = [x for x in got.slow if x["gpu_uuid"] == gpu_uuid(0)]
    without = [x for x in got.slow if x["gpu_uuid"] == gpu_uuid(1)]
    assert all("energy_j" in x for x in with_counter)
    assert len(without) == 3  # once a second, none at the edges
    assert all("energy_j" not in x and x["temperature_c"] > 0 for x in without)
    assert call_counts(tmp_path)["nvmlDeviceGetTotalEnergyConsumption"][1] == 1
    assert got.events == []


def test_metrics_a_card_lacks_are_absent_never_zero(tmp_path: Path) -> None:
    errors = {
        "nvmlDeviceGetUtilizationRates": 3,
        "field186": 3,
        "nvmlDeviceGetTemperature": 3,
        "nvmlDeviceGetTemperatureV": 3,
        "nvmlDeviceGetCurrentClocksEventReasons": 999,
        "nvmlDeviceGetEnforcedPowerLimit": 3,
        "nvmlDeviceGetTotalEccErrors": 3,
        "nvmlDeviceGetComputeRunningProcesses_v3": 4,
    }
    got = sample(stub_env(tmp_path, errors=errors), 1.5)
    assert all("utilization_pct" not in x and "power_average_w" not in x for x in got.fast)
    assert all(x["power_w"] > 100 for x in got.fast[1:])
    assert all("temperature_c" not in x and "power_limit_w" not in x for x in got.slow)
    assert got.more["ended"] is True
    assert got.events == []


def test_the_host_is_sampled_once_a_second_without_any_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    got = sample({"LD_LIBRARY_PATH": str(tmp_path)}, 2.5)
    assert len(got.host) == 3
    assert got.host[-1]["workers_rss_bytes"] > 1 << 20
    assert got.host[-1]["workers_cpu_pct"] >= 0
    assert got.fast == got.slow == got.events == []
    assert set(got.more["stale"]) == {0.0}
    assert got.more["ended"] is True


def test_a_driver_without_gpus(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=0), 0.5)
    assert got.fast == got.slow == got.events == []
    assert len(got.host) == 1
