"""What the sampler does when GPUs and drivers misbehave: the others go on, and nobody waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.nvml import gpu_uuid, stub_env
from fakes.sampling import sample


def test_a_gpu_lost_mid_run_is_said_once_and_the_others_go_on(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=4, lost=(2, 1.0)), 3.0)
    assert got.kinds() == ["gpu_lost"]
    (event,) = got.events
    assert event["severity"] == "error"
    assert event["detail"]["gpu_uuid"] == gpu_uuid(2)
    assert "GPU 2" in event["message"]
    ends = {i: max(x["sampled_at"] for x in got.fast if x["gpu_uuid"] == gpu_uuid(i)) for i in range(4)}
    assert ends[2] < got.more["began"] + 1.2
    for other in (0, 1, 3):
        assert ends[other] > got.more["began"] + 2.7
    assert [g["lost"] for g in got.more["latest"]] == [False, False, True, False]
    assert got.more["ended"] is True


@pytest.mark.parametrize("function", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_call_that_hangs_ten_seconds(tmp_path: Path, function: str) -> None:
    got = sample(stub_env(tmp_path, gpus=2, hang=(function, 1, 1.0, 10.0)), 13.5)
    assert got.kinds() == ["telemetry_stale", "telemetry_back"]
    stale, back = got.events
    began = got.more["began"]
    assert stale["severity"] == "warning"
    assert stale["detail"]["gpu_uuid"] == gpu_uuid(1)
    assert 3.0 <= stale["detail"]["seconds"] <= 4.0
    assert 4.0 < stale["at"] - began < 6.5
    assert 9.5 < back["detail"]["seconds"] < 11.5
    assert max(got.more["stale"]) > 8  # the figure a screen shows
    assert got.more["stale"][-1] < 0.3
    hung, other = (got.fast, got.slow) if function == "nvmlDeviceGetMemoryInfo" else (got.slow, got.fast)
    during = (began + 2.5, began + 10.5)
    assert not [x for x in hung if during[0] < x["sampled_at"] < during[1]]
    assert len([x for x in other if during[0] < x["sampled_at"] < during[1]]) >= 2 * 7  # the other lane goes on
    assert len([x for x in got.host if during[0] < x["sampled_at"] < during[1]]) >= 7
    assert not [
        x
        for x in got.slow
        if abs(x["sampled_at"] - began - 6) < 4.5
        and x["gpu_uuid"] == gpu_uuid(1)
        and "energy_j" in x
        and function.endswith("Consumption")
    ]  # no joule without its moment
    assert [x for x in hung if x["sampled_at"] > began + 12]  # and so does this one, afterwards
    assert got.more["ended"] is True


def test_stop_does_not_wait_for_a_hung_call_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=2, hang=("nvmlDeviceGetMemoryInfo", 0, 0.5, 5.0)), 1.5, linger=5.0)
    assert got.more["ended"] is False
    assert got.more["stop_s"] < 2.3
    assert got.more["after_stop"] == 0


def test_a_slow_driver_costs_ticks_not_the_schedule(tmp_path: Path) -> None:
    # 4 calls of 60 ms on each tick of 100 ms
    got = sample(stub_env(tmp_path, delays_us={"*": 60_000}), 3.0)
    assert got.more["missed"] >= 10
    assert got.kinds() == []
    assert 8 <= len(got.fast) <= 14


def test_readings_that_fail_for_no_known_reason_do_not_end_the_lane(tmp_path: Path) -> None:
    got = sample(stub_env(tmp_path, gpus=2, errors={"nvmlDeviceGetMemoryInfo@1": 999}), 1.5)
    lines = [x for x in got.fast if x["gpu_uuid"] == gpu_uuid(1)]
    assert len(lines) >= 14
    assert all("memory_used_bytes" not in x and x["power_w"] > 0 for x in lines)
