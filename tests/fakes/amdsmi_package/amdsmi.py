"""A fake of the package amdsmi: the functions that lorawatch calls, with the arguments, exceptions, keys and units of
amdsmi 7.0.2 (its amdsmi_interface.py and amdsmi_exception.py). Two kinds of card, in real time:

* `mi300x`: instant power, an energy counter, counters of throttling, no sensor at the edge of the die;
* `r9700`: the average power alone, no energy counter, no counters of throttling.

AMDSMI_FAKE is a JSON object:
  gpus      the kinds of the GPUs
  errors    status codes by function: "amdsmi_get_energy_count", "amdsmi_get_energy_count@1" for GPU 1 only
  lost      [GPU, seconds]: not found that long after amdsmi_init
  hang      [function, GPU, seconds after amdsmi_init, seconds]: its first call after that takes so long
  no_uuid   GPUs without a UUID
  no_library, old_library    what the import does then
  init_s, init_fails    how long amdsmi_init takes, whether ctypes fails in it
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum
from typing import Any

SETTINGS: dict[str, Any] = json.loads(os.environ.get("AMDSMI_FAKE", "{}"))
if SETTINGS.get("no_library"):
    # amdsmi_wrapper prints this to standard output and goes on to a dictionary without the library
    print("/opt/rocm/lib/libamd_smi.so: cannot open shared object file: No such file or directory")
    print("Unable to find libamd_smi.so library try installing amd-smi-lib from your package manager")
    raise KeyError("libamd_smi.so")
if SETTINGS.get("old_library"):
    raise AttributeError("/opt/rocm/lib/libamd_smi.so: undefined symbol: amdsmi_get_gpu_enumeration_info")

NOT_SUPPORTED, NOT_FOUND, NOT_INIT = 2, 31, 32
NAMES = {
    1: "AMDSMI_STATUS_INVAL - Invalid parameters",
    2: "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported",
    6: "AMDSMI_STATUS_DRM_ERROR - Error when called libdrm",
    9: "AMDSMI_STATUS_RETRY - Retry operation",
    10: "AMDSMI_STATUS_NO_PERM - Permission Denied",
    30: "AMDSMI_STATUS_BUSY - Device busy",
    31: "AMDSMI_STATUS_NOT_FOUND - Device Not found",
    32: "AMDSMI_STATUS_NOT_INIT - Device not initialized",
    34: "AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded",
}
POWER_W = 561
CAP_W = 750
RESOLUTION_UJ = 15.259
MIB_TOTAL, MIB_USED = 196592, 65535


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(abs(err_code))
        self.err_code = abs(err_code)
        self.err_info = NAMES.get(self.err_code, "AMDSMI_STATUS_UNKNOWN_ERROR - An unknown error occurred")

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | {self.err_info}"

    def get_error_info(self, detailed: bool = True) -> str:
        return self.err_info if detailed else self.err_info.split(" - ")[0]

    def get_error_code(self) -> int:
        return self.err_code


class AmdSmiRetryException(AmdSmiLibraryException):
    def __init__(self) -> None:
        super().__init__(9)


class AmdSmiParameterException(AmdSmiException):
    pass


class AmdSmiInitFlags(IntEnum):
    INIT_AMD_CPUS = 1
    INIT_AMD_GPUS = 2


class AmdSmiClkType(IntEnum):
    SYS = 0
    GFX = 0
    DF = 1
    MEM = 4


class AmdSmiTemperatureType(IntEnum):
    EDGE = 0
    HOTSPOT = 1
    JUNCTION = 1
    VRAM = 2


class AmdSmiTemperatureMetric(IntEnum):
    CURRENT = 0
    MAX = 1


class ProcessorHandle:
    def __init__(self, index: int, kind: str) -> None:
        self.index = index
        self.kind = kind


_began: float | None = None
_handles = [ProcessorHandle(i, kind) for i, kind in enumerate(SETTINGS.get("gpus", []))]
_hung = False


def _enter(function: str, handle: ProcessorHandle | None = None, *, on: str | None = None) -> float:
    """What every call goes through. Returns seconds since amdsmi_init.

    Args:
        on: The only kind of card that has this.
    """
    global _hung
    if handle is not None and not isinstance(handle, ProcessorHandle):
        raise AmdSmiParameterException(handle, ProcessorHandle)
    if _began is None:
        raise AmdSmiLibraryException(NOT_INIT)
    since = time.monotonic() - _began
    index = handle.index if handle else -1
    hang = SETTINGS.get("hang")
    if hang and not _hung and hang[:2] == [function, index] and since >= hang[2]:
        _hung = True
        time.sleep(hang[3])
    lost = SETTINGS.get("lost")
    if lost and index == lost[0] and since >= lost[1]:
        raise AmdSmiLibraryException(NOT_FOUND)
    errors = SETTINGS.get("errors", {})
    code = errors.get(f"{function}@{index}", errors.get(function))
    if code == 9:
        raise AmdSmiRetryException
    if code:
        raise AmdSmiLibraryException(code)
    if on is not None and handle is not None and handle.kind != on:
        raise AmdSmiLibraryException(NOT_SUPPORTED)
    return since


def amdsmi_init(flag: AmdSmiInitFlags = AmdSmiInitFlags.INIT_AMD_GPUS) -> None:
    global _began
    if not isinstance(flag, AmdSmiInitFlags):
        raise AmdSmiParameterException(flag, AmdSmiInitFlags)
    if SETTINGS.get("init_fails"):
        raise OSError("exception: access violation reading 0x0000000000000000")
    code = SETTINGS.get("errors", {}).get("amdsmi_init")
    if code:
        raise AmdSmiLibraryException(code)
    time.sleep(SETTINGS.get("init_s", 0))
    _began = time.monotonic()


def amdsmi_shut_down() -> None:
    global _began
    _enter("amdsmi_shut_down")
    _began = None


def amdsmi_get_lib_version() -> dict[str, Any]:
    return {"major": 26, "minor": 0, "release": 2, "build": "26.0.2+39589fda"}


def amdsmi_get_processor_handles() -> list[ProcessorHandle]:
    _enter("amdsmi_get_processor_handles")
    return list(_handles)


def amdsmi_get_gpu_asic_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_asic_info", handle)
    mi300x = handle.kind == "mi300x"
    return {
        "market_name": "AMD Instinct MI300X" if mi300x else "AMD Radeon AI PRO R9700",
        "vendor_id": "0x1002", "vendor_name": "Advanced Micro Devices Inc. [AMD/ATI]", "subvendor_id": "0x1002",
        "device_id": "0x74a1" if mi300x else "0x7551", "rev_id": "0x00", "asic_serial": _serial(handle),
        "oam_id": handle.index if mi300x else "N/A", "num_compute_units": 304 if mi300x else 64,
        "target_graphics_version": "gfx942" if mi300x else "gfx1201", "subsystem_id": "0x74a1",
    }  # fmt: skip


def _serial(handle: ProcessorHandle) -> str:
    if handle.index in SETTINGS.get("no_uuid", ()):
        return "N/A"
    return f"0xDE8287300DA37C7{handle.index:X}"


def amdsmi_get_gpu_enumeration_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_enumeration_info", handle)
    known = handle.index not in SETTINGS.get("no_uuid", ())
    return {
        "drm_render": 128 + handle.index, "drm_card": handle.index, "hsa_id": 2 + handle.index, "hip_id": handle.index,
        "hip_uuid": f"GPU-de8287300da37c7{handle.index:x}" if known else "GPU-0000000000000000",
    }  # fmt: skip


def amdsmi_get_gpu_board_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_board_info", handle)
    return dict.fromkeys(("model_number", "product_serial", "fru_id", "product_name", "manufacturer_name"), "N/A")


def amdsmi_get_gpu_driver_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_driver_info", handle)
    return {"driver_name": "amdgpu", "driver_version": "6.12.12", "driver_date": "2015/01/01 00:00"}


def amdsmi_get_power_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_power_info", handle)
    info = dict.fromkeys(("gfx_voltage", "soc_voltage", "mem_voltage"), "N/A")
    if handle.kind == "mi300x":
        return {"socket_power": POWER_W, "current_socket_power": POWER_W, "average_socket_power": "N/A", **info,
                "power_limit": CAP_W}  # fmt: skip
    return {"socket_power": 240, "current_socket_power": "N/A", "average_socket_power": 240, **info, "power_limit": 300}


def amdsmi_get_power_cap_info(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_power_cap_info", handle)
    watts = CAP_W if handle.kind == "mi300x" else 300
    return {"power_cap": watts * 10**6, "default_power_cap": watts * 10**6, "dpm_cap": 0, "min_power_cap": 0,
            "max_power_cap": watts * 10**6}  # fmt: skip


def amdsmi_get_gpu_vram_usage(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_vram_usage", handle)
    return {"vram_total": MIB_TOTAL, "vram_used": MIB_USED}


def amdsmi_get_gpu_activity(handle: ProcessorHandle) -> dict[str, Any]:
    _enter("amdsmi_get_gpu_activity", handle)
    return {"gfx_activity": 97, "umc_activity": 41, "mm_activity": "N/A"}


def amdsmi_get_clock_info(handle: ProcessorHandle, clock_type: AmdSmiClkType) -> dict[str, Any]:
    if not isinstance(clock_type, AmdSmiClkType):
        raise AmdSmiParameterException(clock_type, AmdSmiClkType)
    _enter("amdsmi_get_clock_info", handle)
    clk = 2100 if clock_type is AmdSmiClkType.GFX else 1300
    return {"clk": clk, "min_clk": 132, "max_clk": clk, "clk_locked": False, "clk_deep_sleep": "N/A"}


def amdsmi_get_temp_metric(
    handle: ProcessorHandle, sensor_type: AmdSmiTemperatureType, metric: AmdSmiTemperatureMetric
) -> int:
    if not isinstance(sensor_type, AmdSmiTemperatureType) or not isinstance(metric, AmdSmiTemperatureMetric):
        raise AmdSmiParameterException(sensor_type, AmdSmiTemperatureType)
    _enter("amdsmi_get_temp_metric", handle)
    if handle.kind == "mi300x" and sensor_type is AmdSmiTemperatureType.EDGE:
        raise AmdSmiLibraryException(NOT_SUPPORTED)
    return {0: 58, 1: 63, 2: 49}[sensor_type]


def amdsmi_get_energy_count(handle: ProcessorHandle) -> dict[str, Any]:
    since = _enter("amdsmi_get_energy_count", handle, on="mi300x")
    microjoules = (1e5 + POWER_W * since) * 1e6
    return {
        "energy_accumulator": int(microjoules / RESOLUTION_UJ), "counter_resolution": RESOLUTION_UJ,
        "timestamp": int(time.time() * 1e9),
    }  # fmt: skip


def amdsmi_get_gpu_metrics_info(handle: ProcessorHandle) -> dict[str, Any]:
    since = _enter("amdsmi_get_gpu_metrics_info", handle)
    names = ("accumulation_counter", "prochot_residency_acc", "ppt_residency_acc", "socket_thm_residency_acc",
             "vr_thm_residency_acc", "hbm_thm_residency_acc")  # fmt: skip
    metrics: dict[str, Any] = dict.fromkeys(names, "N/A")
    if handle.kind == "mi300x":
        samples = 10_000 + int(since / 0.1)  # the firmware takes one every 100 ms
        metrics = dict.fromkeys(names, 17)  # what earlier loads left
        metrics |= {"accumulation_counter": samples, "ppt_residency_acc": samples - 500}
        if handle.index == 1:
            metrics["hbm_thm_residency_acc"] = samples - 9_000
    return {"throttle_status": "N/A", "indep_throttle_status": "N/A", **metrics}


def amdsmi_get_gpu_total_ecc_count(handle: ProcessorHandle) -> dict[str, Any]:
    since = _enter("amdsmi_get_gpu_total_ecc_count", handle, on="mi300x")
    return {"correctable_count": 3, "uncorrectable_count": int(since), "deferred_count": 0}


def amdsmi_get_gpu_process_list(handle: ProcessorHandle) -> list[dict[str, Any]]:
    _enter("amdsmi_get_gpu_process_list", handle)
    return [
        {
            "name": "N/A", "pid": 4242, "mem": 3 << 30, "engine_usage": {"gfx": 0, "enc": 0},
            "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": 3 << 30}, "cu_occupancy": "N/A",
        }
    ]  # fmt: skip
