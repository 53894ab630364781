"""One GPU as AMD SMI sees it: `driver.GpuDevice` over the Python package amdsmi.

Written from the package (7.0.2), its documentation and the library's source, and not tried on a card. What the package
gives, in its own units:

| reading | function | unit |
|---|---|---|
| power | amdsmi_get_power_info | W; `current_socket_power` on MI300 and newer, `average_socket_power` on older and Radeon |
| memory | amdsmi_get_gpu_vram_usage | MiB |
| utilization | amdsmi_get_gpu_activity | % |
| clocks | amdsmi_get_clock_info | MHz |
| throttling | amdsmi_get_gpu_metrics_info | counters of the firmware's samples, all and those under a limit; MI300 and newer |
| energy | amdsmi_get_energy_count | `energy_accumulator` × `counter_resolution` µJ |
| temperature | amdsmi_get_temp_metric | °C |
| power limit | amdsmi_get_power_cap_info | µW |
| errors | amdsmi_get_gpu_total_ecc_count | count |
| processes | amdsmi_get_gpu_process_list | bytes |

A value that a card lacks is "N/A" there, or the largest unsigned integer of its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lorawatch.run.clock_reasons import ClockReason
from lorawatch.telemetry.driver import GpuFacts, GpuLost, GpuProcess, Pauses, ReadByColumn, Reader

MIB = 1 << 20
# amdsmi.h, amdsmi_status_t
INVAL, NOT_SUPPORTED, NOT_YET_IMPLEMENTED, FAIL_LOAD_SYMBOL, NO_PERM, SETTING_UNAVAILABLE = 1, 2, 3, 5, 10, 55
RETRY, INTERRUPT, BUSY = 9, 11, 30
NOT_FOUND, DRIVER_NOT_LOADED = 31, 34

# Answers that stay the same until the driver, its settings or permissions change.
_LASTING = frozenset({INVAL, NOT_SUPPORTED, NOT_YET_IMPLEMENTED, FAIL_LOAD_SYMBOL, NO_PERM, SETTING_UNAVAILABLE})
_MOMENTARY = frozenset({RETRY, INTERRUPT, BUSY})
_LOST = frozenset({NOT_FOUND, DRIVER_NOT_LOADED})
# Readings that every card has: NOT_FOUND there is the card, elsewhere it may be a sensor.
_OF_EVERY_CARD = frozenset({"amdsmi_get_power_info", "amdsmi_get_gpu_vram_usage", "amdsmi_get_gpu_activity"})
_MISSING = frozenset({0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_MISSING_16 = 0xFFFF
"""The firmware's own, of its 16-bit figures: watts, percent and MHz."""

_SAMPLES = "accumulation_counter"
# How many of the firmware's samples found the GPU held back by each limit (amdsmi.h, amdsmi_violation_status_t).
_LIMITED = {
    "ppt_residency_acc": ClockReason.POWER_CAP,  # package power tracking
    "socket_thm_residency_acc": ClockReason.SOFTWARE_THERMAL,
    "vr_thm_residency_acc": ClockReason.SOFTWARE_THERMAL,  # voltage regulators
    "hbm_thm_residency_acc": ClockReason.SOFTWARE_THERMAL,
    "prochot_residency_acc": ClockReason.HARDWARE_THERMAL,
}


class AmdDevice(ReadByColumn):
    """A GPU's readers. Safe for several threads, as AMD SMI is.

    Args:
        api: The package amdsmi.
        handle: Its handle of the GPU.
        index: The driver's index, as amd-smi lists it.
        uuid: `GPU-` and 16 hexadecimal digits, or `visible_devices.numbered`.
        sku: The model as the driver names it.
    """

    def __init__(self, api: Any, handle: Any, index: int, uuid: str, sku: str) -> None:
        self.index = index
        self.uuid = uuid
        self.sku = sku
        self._api = api
        self._handle = handle
        self._pauses = Pauses()
        self._limited: dict[str, float] = {}

    # --- the fast lane's readers: each reads one file of the driver, or asks it once

    def power(self) -> tuple[float | None, float | None]:
        """Watts now and the firmware's average; a card that has the average alone gives it as the first."""
        info = self._ask("amdsmi_get_power_info") or {}
        now, average = _short(info.get("current_socket_power")), _short(info.get("average_socket_power"))
        if now is not None:
            return now, average
        return (average if average is not None else _short(info.get("socket_power"))), None

    def memory_used(self) -> int | None:
        """Bytes of the card's memory in use, to the MiB."""
        return self._memory("vram_used")

    def utilization(self) -> float | None:
        """Percent of the firmware's last sample period in which the graphics engine, which computes too, was busy."""
        return _short((self._ask("amdsmi_get_gpu_activity") or {}).get("gfx_activity"))

    def sm_clock(self) -> int | None:
        """MHz of the graphics clock, which the compute units run at."""
        return self._clock("GFX")

    def event_reasons(self) -> ClockReason | None:
        """What held the clocks back since the last reading; None at first, and on a card that does not count it.

        amdsmi_get_violation_status takes the same difference of the same counters, over 100 ms that it waits for.
        """
        metrics = self._ask("amdsmi_get_gpu_metrics_info") or {}
        counts = {name: _number(metrics.get(name)) for name in (_SAMPLES, *_LIMITED)}
        now = {name: count for name, count in counts.items() if count is not None}
        before, self._limited = self._limited, now
        if now.get(_SAMPLES, 0) <= before.get(_SAMPLES, float("inf")) or len(now) < 2:
            return None
        reasons = ClockReason(0)
        for name, reason in _LIMITED.items():
            if name in before and now.get(name, 0) > before[name]:
                reasons |= reason
        return reasons

    # --- the slow lane's readers

    def energy(self) -> float | None:
        """The card's energy counter in joules since the driver was loaded; a counter that stands at 0 is none."""
        counter = self._ask("amdsmi_get_energy_count") or {}
        ticks, microjoules = _number(counter.get("energy_accumulator")), _number(counter.get("counter_resolution"))
        return ticks * microjoules / 1e6 if ticks and microjoules else None

    def temperature(self) -> float | None:
        """Degrees Celsius of the hottest spot of the die, or of its edge where the card has only that."""
        for sensor in ("HOTSPOT", "EDGE"):
            degrees = self._sensor(sensor)
            if degrees is not None:
                return degrees
        return None

    def memory_temperature(self) -> float | None:
        """Degrees Celsius of the card's memory."""
        return self._sensor("VRAM")

    def power_limit(self) -> float | None:
        """Watts that the card is held to now."""
        return self._cap("power_cap")

    def memory_clock(self) -> int | None:
        """MHz."""
        return self._clock("MEM")

    def uncorrected_errors(self) -> int | None:
        """Memory errors since the driver was loaded that ECC could not correct."""
        return _whole((self._ask("amdsmi_get_gpu_total_ecc_count") or {}).get("uncorrectable_count"))

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """The processes that compute on this GPU."""
        listed = self._ask("amdsmi_get_gpu_process_list")
        if listed is None:
            return None
        return tuple(
            GpuProcess(pid, _whole((entry.get("memory_usage") or {}).get("vram_mem")))
            for entry in listed
            if (pid := _whole(entry.get("pid"))) is not None
        )

    # --- asked rarely

    def memory_total(self) -> int | None:
        """Bytes, to the MiB."""
        return self._memory("vram_total")

    def memory_free(self) -> int | None:
        """Bytes, to the MiB."""
        total, used = self.memory_total(), self.memory_used()
        return None if total is None or used is None else total - used

    def architecture(self) -> str | None:
        """As torch names it, such as `gfx942`."""
        name = (self._ask("amdsmi_get_gpu_asic_info") or {}).get("target_graphics_version")
        return name if isinstance(name, str) and name.startswith("gfx") and name != "gfx0" else None

    def facts(self) -> GpuFacts:
        """How the GPU is set up.

        Raises:
            GpuLost: The GPU has gone.
        """
        return GpuFacts(
            free_memory_bytes=self.memory_free(),
            power_limit_w=self.power_limit(),
            default_power_limit_w=self._cap("default_power_cap"),
            energy_counter=self.energy() is not None,
        )

    # --- by the registry's names

    readers: ClassVar[Mapping[str, Reader]] = {
        "memory_used_bytes": memory_used,
        "utilization_pct": utilization,
        "sm_clock_mhz": sm_clock,
        "event_reasons": event_reasons,
        "temperature_c": temperature,
        "memory_temperature_c": memory_temperature,
        "memory_clock_mhz": memory_clock,
        "power_limit_w": power_limit,
    }

    # --- how a question is asked

    def _memory(self, name: str) -> int | None:
        mebibytes = _whole((self._ask("amdsmi_get_gpu_vram_usage") or {}).get(name))
        return None if mebibytes is None else mebibytes * MIB

    def _clock(self, kind: str) -> int | None:
        megahertz = _short((self._ask("amdsmi_get_clock_info", "AmdSmiClkType", kind) or {}).get("clk"))
        return None if megahertz is None else int(megahertz)

    def _sensor(self, sensor: str) -> float | None:
        metric = self._api.AmdSmiTemperatureMetric.CURRENT
        degrees = _number(self._ask("amdsmi_get_temp_metric", "AmdSmiTemperatureType", sensor, metric))
        # The documentation says thousandths, the library divides by 1,000 and torch takes degrees: no GPU is that hot.
        return degrees / 1000 if degrees is not None and degrees >= 1000 else degrees

    def _cap(self, name: str) -> float | None:
        microwatts = _number((self._ask("amdsmi_get_power_cap_info") or {}).get(name))
        return microwatts / 1e6 if microwatts else None

    def _ask(self, function: str, kind: str | None = None, member: str = "", *arguments: Any) -> Any | None:
        """What a function of amdsmi answers for this GPU.

        Args:
            kind: The enumeration that its first argument is a member of; None where it takes the handle alone.
        """
        reading = f"{function} {member}"
        if not self._pauses.over(reading):
            return None
        try:
            if kind is not None:
                arguments = (getattr(getattr(self._api, kind), member), *arguments)
            return getattr(self._api, function)(self._handle, *arguments)
        except self._api.AmdSmiLibraryException as error:
            code = error.get_error_code()
            if code in _LOST and function in _OF_EVERY_CARD:
                raise GpuLost(self.uuid, error.get_error_info(detailed=False)) from error
            if code not in _MOMENTARY:
                self._pauses.begin(reading, lasting=code in _LASTING)
        except Exception:  # noqa: BLE001 - an older package lacks a function, or fails on what its library gives
            self._pauses.begin(reading, lasting=True)
        return None


def _number(value: Any) -> float | None:
    """A figure of amdsmi; None for "N/A" and for the largest unsigned integers, which stand for it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value in _MISSING:
        return None
    return float(value)


def _short(value: Any) -> float | None:
    """A figure that the firmware keeps in 16 bits."""
    return None if value == _MISSING_16 else _number(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(value)
