"""One GPU as NVML sees it: `driver.GpuDevice` over pynvml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pynvml

from lorawatch.run.clock_reasons import ClockReason
from lorawatch.telemetry.driver import GpuFacts, GpuLost, GpuProcess, Pauses, ReadByColumn, Reader

_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND})
# Answers that stay the same until the driver, MIG mode or permissions change.
_LASTING = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NO_PERMISSION,
    }
)
_POWER_FIELDS = [pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE]
_TEMPERATURE_V = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)  # not in the oldest pynvml that we take
_COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
}
# One mask under two names: clock event reasons since driver 535, throttle reasons before.
_CLOCK_REASONS = {
    pynvml.nvmlClocksEventReasonGpuIdle: ClockReason.IDLE,
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: ClockReason.CLOCK_SETTING,
    pynvml.nvmlClocksEventReasonSwPowerCap: ClockReason.POWER_CAP,
    pynvml.nvmlClocksEventReasonHwSlowdown: ClockReason.HARDWARE_SLOWDOWN,
    pynvml.nvmlClocksEventReasonSyncBoost: ClockReason.SYNC_BOOST,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: ClockReason.SOFTWARE_THERMAL,
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: ClockReason.HARDWARE_THERMAL,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: ClockReason.POWER_BRAKE,
    pynvml.nvmlClocksEventReasonDisplayClockSetting: ClockReason.DISPLAY_CLOCK,
    pynvml.nvmlClocksThrottleReasonBoardLimit: ClockReason.BOARD_LIMIT,
    pynvml.nvmlClocksThrottleReasonReliability: ClockReason.RELIABILITY,
}


class NvmlDevice(ReadByColumn):
    """A GPU's readers. Safe for several threads, as NVML is.

    Attributes:
        index: NVML's index, which follows PCI order.
        uuid: `GPU-…`.
        sku: The model as the driver names it.
    """

    def __init__(self, handle: Any, index: int, uuid: str, sku: str) -> None:
        self.index = index
        self.uuid = uuid
        self.sku = sku
        self._handle = handle
        self._pauses = Pauses()

    # --- the fast lane's readers: each is one NVML call

    def power(self) -> tuple[float | None, float | None]:
        """Power now and the driver's own average, in watts.

        Cards without the instant field answer with their default reading (on most of them a 1 s average) and no
        average. The first reading after the field was refused is (None, None): the other call comes next time, so that
        a reading is one call always.
        """
        if not self._pauses.over("power fields"):
            milliwatts = self._ask("power", pynvml.nvmlDeviceGetPowerUsage)
            return (None if milliwatts is None else milliwatts / 1000), None
        values = self._ask("power fields", pynvml.nvmlDeviceGetFieldValues, _POWER_FIELDS)
        if values is None:
            return None, None
        instant, average = values
        if instant.nvmlReturn != pynvml.NVML_SUCCESS:
            self._refused("power fields", instant.nvmlReturn)
            return None, None
        # milliwatts, an unsigned int in both
        return instant.value.uiVal / 1000, None if average.nvmlReturn else average.value.uiVal / 1000

    def memory_used(self) -> int | None:
        """Bytes that no other process can have: the driver's own reserve counts as used."""
        memory = self._ask("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.used)

    def utilization(self) -> float | None:
        """Percent of the last sample period in which any kernel ran."""
        rates = self._ask("utilization", pynvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else float(rates.gpu)

    def sm_clock(self) -> int | None:
        """MHz."""
        clock: int | None = self._ask("sm clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)
        return clock

    def event_reasons(self) -> ClockReason | None:
        """Why the clocks are not higher; a reason that nvml.h did not have when this was written is left out."""
        if self._pauses.over("event reasons"):
            mask = self._ask("event reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        else:
            mask = self._ask("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if mask is None:
            return None
        reasons = ClockReason(0)
        for bit, reason in _CLOCK_REASONS.items():
            if mask & bit:
                reasons |= reason
        return reasons

    # --- the slow lane's readers

    def energy(self) -> float | None:
        """The card's energy counter in joules since the driver was loaded; milliseconds of work for the driver."""
        millijoules = self._ask("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def temperature(self) -> float | None:
        """Degrees Celsius of the GPU die."""
        degrees = self._ask("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
        if degrees is None and _TEMPERATURE_V is not None:  # NVML announces the older name's end
            degrees = self._ask("temperature v", _TEMPERATURE_V, pynvml.NVML_TEMPERATURE_GPU)
        return None if degrees is None else float(degrees)

    def memory_temperature(self) -> float | None:
        """Degrees Celsius of the memory; most cards without HBM have no such sensor."""
        values = self._ask("memory temperature", pynvml.nvmlDeviceGetFieldValues, [pynvml.NVML_FI_DEV_MEMORY_TEMP])
        if values is None:
            return None
        (degrees,) = values
        if degrees.nvmlReturn != pynvml.NVML_SUCCESS:
            self._refused("memory temperature", degrees.nvmlReturn)
            return None
        return float(degrees.value.uiVal)

    def power_limit(self) -> float | None:
        """Watts that the card is held to now, the lowest of all limits."""
        milliwatts = self._ask("power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit)
        return None if milliwatts is None else milliwatts / 1000

    def memory_clock(self) -> int | None:
        """MHz."""
        clock: int | None = self._ask("memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM)
        return clock

    def uncorrected_errors(self) -> int | None:
        """Memory errors since the driver was loaded that ECC could not correct."""
        count: int | None = self._ask(
            "ecc errors",
            pynvml.nvmlDeviceGetTotalEccErrors,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )
        return count

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """The processes that compute on this GPU."""
        # by versioned names: pynvml's plain name raises no NVMLError where the driver is older than pynvml
        listed = self._ask("processes", pynvml.nvmlDeviceGetComputeRunningProcesses_v3)
        if listed is None:
            listed = self._ask("processes v2", pynvml.nvmlDeviceGetComputeRunningProcesses_v2)
        if listed is None:
            return None
        return tuple(GpuProcess(int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in listed)

    # --- asked rarely

    def memory_total(self) -> int | None:
        """Bytes."""
        memory = self._ask("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.total)

    def memory_free(self) -> int | None:
        """Bytes."""
        memory = self._ask("memory", pynvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else int(memory.free)

    def architecture(self) -> str | None:
        """CUDA's compute capability as torch names it, such as `sm_90`."""
        version = self._ask("capability", pynvml.nvmlDeviceGetCudaComputeCapability)
        return None if version is None else f"sm_{version[0]}{version[1]}"

    def nvlink(self) -> bool:
        """Whether a link of NVLink is up."""
        return bool(self._ask("nvlink", pynvml.nvmlDeviceGetNvLinkState, 0))

    def pcie_generation(self) -> int | None:
        """Of what the card and its slot can do."""
        generation: int | None = self._ask("pcie generation", pynvml.nvmlDeviceGetMaxPcieLinkGeneration)
        return generation

    def facts(self) -> GpuFacts:
        """How the GPU is set up.

        Raises:
            GpuLost: The GPU has gone.
        """
        persistence = self._ask("persistence", pynvml.nvmlDeviceGetPersistenceMode)
        compute_mode = self._ask("compute mode", pynvml.nvmlDeviceGetComputeMode)
        default_limit = self._ask("default limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit)
        mig = self._ask("mig", pynvml.nvmlDeviceGetMigMode)
        ecc = self._ask("ecc mode", pynvml.nvmlDeviceGetEccMode)
        return GpuFacts(
            free_memory_bytes=self.memory_free(),
            persistence_mode=None if persistence is None else bool(persistence),
            compute_mode=None if compute_mode is None else _COMPUTE_MODES.get(compute_mode, f"mode {compute_mode}"),
            power_limit_w=self.power_limit(),
            default_power_limit_w=None if default_limit is None else default_limit / 1000,
            energy_counter=self.energy() is not None,
            mig_mode=None if mig is None else bool(mig[0]),
            ecc_mode=None if ecc is None else bool(ecc[0]),
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

    def _ask(self, metric: str, call: Callable[..., Any], *arguments: Any) -> Any | None:
        if not self._pauses.over(metric):
            return None
        try:
            return call(self._handle, *arguments)
        except pynvml.NVMLError as error:
            self._refused(metric, error.value)
            return None

    def _refused(self, metric: str, code: int) -> None:
        if code in _LOST:
            raise GpuLost(self.uuid, error_text(code))
        self._pauses.begin(metric, lasting=code in _LASTING)


def error_text(code: int) -> str:
    """NVML's own words for an error code."""
    return str(pynvml.NVMLError(code))
