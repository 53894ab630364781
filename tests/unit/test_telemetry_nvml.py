"""The NVML layer, driven through the real pynvml against the stub driver, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import EAGER, call_counts, gpu_uuid, run_python, stub_env

from lorawatch.run.clock_reasons import ClockReason

PREAMBLE = """
import json, sys, time
from dataclasses import asdict
from lorawatch.telemetry.driver import *
from lorawatch.telemetry.nvml import *
"""


def ask(code: str, env: dict[str, str]) -> Any:
    return json.loads(run_python(PREAMBLE + code, env))


def failure(env: dict[str, str], arguments: str = "") -> dict[str, str]:
    code = f"""
try:
    open_nvml({arguments})
except DriverUnavailable as error:
    print(json.dumps({{"reason": error.reason, "hint": error.hint, "exit_code": error.exit_code}}))
"""
    return ask(code, env)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_lists_the_gpus(tmp_path: Path, count: int) -> None:
    code = """
import msgspec
n = open_nvml()
print(json.dumps([n.driver_version, n.cuda_version, msgspec.to_builtins(n.gpus("h"))]))
"""
    driver, cuda, gpus = ask(code, stub_env(tmp_path, gpus=count))
    assert (driver, cuda) == ("580.159.04", "13.0")
    assert [g["gpu_uuid"] for g in gpus] == [gpu_uuid(i) for i in range(count)]
    for index, gpu in enumerate(gpus):
        assert gpu["gpu_index"] == index
        assert gpu["sku"] == "NVIDIA H100 80GB HBM3"
        assert gpu["memory_total_bytes"] == 85520809984
        assert gpu["power_limit_w"] == 700


def test_indices_and_uuids_do_not_follow_cuda_visible_devices(tmp_path: Path) -> None:
    env = stub_env(tmp_path, gpus=3) | {"CUDA_VISIBLE_DEVICES": "2,0"}
    code = "print(json.dumps([[g.gpu_index, g.gpu_uuid] for g in open_nvml().gpus('h')]))"
    assert ask(code, env) == [[i, gpu_uuid(i)] for i in range(3)]


def test_a_gpu_that_does_not_answer_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    env = stub_env(tmp_path, gpus=3, errors={"nvmlDeviceGetHandleByIndex_v2@1": 15})
    uuids, problems = ask("n = open_nvml(); print(json.dumps([[d.uuid for d in n.devices], n.problems]))", env)
    assert uuids == [gpu_uuid(0), gpu_uuid(2)]
    assert problems == ["GPU 1 does not answer: GPU is lost"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "installed but not loaded"),
        (4, "no permission"),
        (18, "different versions"),
        (13, "too old"),
        (999, "Unknown Error"),
    ],
)
def test_a_driver_that_refuses_is_a_plain_reason(tmp_path: Path, code: int, words: str) -> None:
    said = failure(stub_env(tmp_path, errors={"nvmlInitWithFlags": code}))
    assert words in said["reason"]
    assert said["hint"]
    assert said["exit_code"] == 3


def test_no_library_is_a_plain_reason(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    said = failure({"LD_LIBRARY_PATH": str(tmp_path)})
    assert "no NVIDIA driver is installed" in said["reason"]


def test_a_library_that_fails_is_a_plain_reason(tmp_path: Path) -> None:
    code = """
import pynvml
def broken():
    raise OSError("exception: access violation")
pynvml.nvmlInit = broken
try:
    open_nvml()
except DriverUnavailable as error:
    print(json.dumps(error.reason))
"""
    assert ask(code, stub_env(tmp_path)) == "the NVIDIA driver's library fails: OSError: exception: access violation"


def test_a_driver_that_never_answers_does_not_hold_us(tmp_path: Path) -> None:
    said = failure(stub_env(tmp_path, delays_us={"nvmlInitWithFlags": 30e6}), "0.5")
    assert "did not answer within" in said["reason"]


READ_ALL = """
device = open_nvml().devices[0]
names = ["power", "memory_used", "utilization", "sm_clock", "event_reasons", "energy", "temperature", "power_limit",
         "memory_clock", "uncorrected_errors", "processes"]
values = {name: getattr(device, name)() for name in names for _ in range(2)}
values["processes"] = values["processes"] and [asdict(p) for p in values["processes"]]
print(json.dumps(values))
"""


def test_readings_are_the_recorded_ones(tmp_path: Path) -> None:
    read = ask(READ_ALL, stub_env(tmp_path, gpus=2, processes=[(0, 4242, 1 << 30), (1, 5, 6)]))
    instant, average = read["power"]
    assert 100 < instant < 710
    assert 100 < average < 710
    assert read["memory_used"] == 25672089600
    assert 0 <= read["utilization"] <= 100
    assert read["sm_clock"] == 1980
    assert read["event_reasons"] == 0
    assert read["energy"] > 0
    assert 40 < read["temperature"] < 80
    assert read["power_limit"] == 700
    assert read["memory_clock"] == 2619
    assert read["uncorrected_errors"] == 0
    assert read["processes"] == [{"pid": 4242, "memory_bytes": 1 << 30}]


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0, 0),
        (0x4, ClockReason.POWER_CAP),
        (0x20 | 0x40, ClockReason.SOFTWARE_THERMAL | ClockReason.HARDWARE_THERMAL),
        (0x8 | 0x80 | 0x1 | 0x100, ClockReason.HARDWARE_SLOWDOWN | ClockReason.POWER_BRAKE | ClockReason.IDLE
         | ClockReason.DISPLAY_CLOCK),
        (0x2 | 0x10, ClockReason.CLOCK_SETTING | ClockReason.SYNC_BOOST),
        (0x200 | 0x400, ClockReason.BOARD_LIMIT | ClockReason.RELIABILITY),
        (0x4 | 0x100000, ClockReason.POWER_CAP),  # one that nvml.h does not have yet
    ],
)  # fmt: skip
def test_nvmls_mask_is_read_as_reasons_of_no_vendor(tmp_path: Path, mask: int, reasons: ClockReason) -> None:
    header, *rows = EAGER.read_text().splitlines()[:3]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join([header, *(f"{row.rpartition(',')[0]},{mask}" for row in rows)]) + "\n")
    code = "print(json.dumps(int(open_nvml().devices[0].event_reasons())))"
    assert ask(code, stub_env(tmp_path, trace=trace)) == reasons


def test_the_numbers_that_journals_keep_never_change() -> None:
    assert {reason.name: int(reason) for reason in ClockReason} == {
        "IDLE": 1, "CLOCK_SETTING": 2, "POWER_CAP": 4, "HARDWARE_SLOWDOWN": 8, "SYNC_BOOST": 16, "SOFTWARE_THERMAL": 32,
        "HARDWARE_THERMAL": 64, "POWER_BRAKE": 128, "DISPLAY_CLOCK": 256, "BOARD_LIMIT": 512, "RELIABILITY": 1024,
    }  # fmt: skip


ALL_FUNCTIONS = [
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetClockInfo:sm",
    "nvmlDeviceGetClockInfo:memory",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
]


@pytest.mark.parametrize("code", [3, 4, 13, 999, 10, 12345])
def test_what_a_card_refuses_is_none(tmp_path: Path, code: int) -> None:
    read = ask(READ_ALL, stub_env(tmp_path, errors=dict.fromkeys(ALL_FUNCTIONS, code)))
    assert read.pop("power") == [None, None]
    assert set(read.values()) == {None}


def test_a_refused_metric_is_not_asked_for_again(tmp_path: Path) -> None:
    code = "d = open_nvml().devices[0]; print(json.dumps([d.energy() for _ in range(50)]))"
    ask(code, stub_env(tmp_path, errors={"nvmlDeviceGetTotalEnergyConsumption": 3}))
    assert call_counts(tmp_path)["nvmlDeviceGetTotalEnergyConsumption"][0] == 1


def test_a_refused_metric_is_asked_for_again_later(tmp_path: Path) -> None:
    code = """
import os
from lorawatch.telemetry import driver
driver.UNSUPPORTED_PAUSE_S = 0.2
d = open_nvml().devices[0]
first = d.energy(), d.energy()
import ctypes
ctypes.CDLL(None).setenv(b"NVML_STUB_ERRORS", b"", 1)
time.sleep(0.3)
print(json.dumps([*first, d.energy() is not None]))
"""
    errors = {"nvmlDeviceGetTotalEnergyConsumption": 3}
    assert ask(code, stub_env(tmp_path, errors=errors)) == [None, None, True]


@pytest.mark.parametrize("refused", ["nvmlDeviceGetFieldValues", "field186"])
def test_a_card_without_instant_power_gives_its_default_reading(tmp_path: Path, refused: str) -> None:
    code = "d = open_nvml().devices[0]; print(json.dumps([d.power() for _ in range(3)]))"
    first, *later = ask(code, stub_env(tmp_path, errors={refused: 3}))
    assert first == [None, None]  # a reading is one call always
    for power, average in later:
        assert 100 < power < 710
        assert average is None
    assert call_counts(tmp_path)["nvmlDeviceGetFieldValues"][0] == 1


def test_a_driver_with_older_names_gives_reasons_and_temperature(tmp_path: Path) -> None:
    errors = {"nvmlDeviceGetCurrentClocksEventReasons": 13, "nvmlDeviceGetTemperature": 26}
    read = ask(READ_ALL, stub_env(tmp_path, errors=errors))
    assert read["event_reasons"] == 0
    assert read["temperature"] > 40


@pytest.mark.parametrize("code", [15, 16, 28])
def test_a_gpu_that_has_gone_is_an_error_not_a_missing_value(tmp_path: Path, code: int) -> None:
    program = """
n = open_nvml()
try:
    n.devices[1].utilization()
except GpuLost as lost:
    print(json.dumps([lost.gpu_uuid, lost.reason]))
"""
    uuid, reason = ask(program, stub_env(tmp_path, gpus=2, errors={"nvmlDeviceGetUtilizationRates@1": code}))
    assert uuid == gpu_uuid(1)
    assert reason


def test_free_memory_and_processes_by_uuid(tmp_path: Path) -> None:
    env = stub_env(tmp_path, gpus=2, memory_used=80_000_000_000, processes=[(1, 77, 5_000_000)])
    code = f"""
n = open_nvml()
print(json.dumps([n.free_memory("{gpu_uuid(1)}"), [asdict(p) for p in n.processes("{gpu_uuid(1)}")],
                  n.free_memory("GPU-nobody"), n.processes("GPU-nobody"), n.processes("{gpu_uuid(0)}")]))
"""
    free, processes, *unknown = ask(code, env)
    assert free == 85520809984 - 80_000_000_000
    assert processes == [{"pid": 77, "memory_bytes": 5_000_000}]
    assert unknown == [None, [], []]


def test_free_memory_of_a_lost_gpu_is_unknown(tmp_path: Path) -> None:
    env = stub_env(tmp_path, lost=(0, 0.0))
    code = f'n = open_nvml(); print(json.dumps([n.free_memory("{gpu_uuid(0)}"), len(n.devices), n.problems]))'
    assert ask(code, env) == [None, 0, ["GPU 0 does not answer: GPU is lost"]]
