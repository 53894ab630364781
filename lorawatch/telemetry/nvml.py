"""NVML: whether this machine has a driver that answers, and which GPUs it knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from lorawatch.errors import MissingDependency
from lorawatch.run.directory import Gpu
from lorawatch.telemetry.device import Device, GpuLost, GpuProcess, error_text

__all__ = ["Device", "GpuLost", "GpuProcess", "Nvml", "NvmlUnavailable", "open_nvml"]

# Without persistence mode the first opening wakes every GPU, seconds each.
OPEN_TIMEOUT_S = 60.0

_REASONS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "no NVIDIA driver is installed here (libnvidia-ml.so.1 was not found)",
        "install the NVIDIA driver, or run on the CPU: --gpus cpu:2",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
        "the NVIDIA driver is too old: its NVML library lacks what is needed",
        "update the NVIDIA driver",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is installed but not loaded",
        "load it (modprobe nvidia) or reboot; in a container, pass the GPUs in",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "no permission to talk to the NVIDIA driver",
        "ask for access to /dev/nvidia*; in a container or a batch job, ask for a GPU",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver's library and kernel module have different versions",
        "reboot: the driver was updated while it was loaded",
    ),
}


class NvmlUnavailable(MissingDependency):
    """No readings can be had from NVML here.

    Attributes:
        reason: Why, one sentence for people; `hint` says what to do.
    """

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason


class Nvml:
    """An opened driver and its GPUs.

    Attributes:
        driver_version: The kernel driver's version, such as `580.159.04`; None where it does not say.
        nvml_version: The library's own version.
        cuda_version: The newest CUDA the driver can run, such as `13.0`.
        devices: The GPUs that answered, in PCI order, whatever devices the environment chooses.
        problems: What is wrong with GPUs that did not answer, one line each.
    """

    def __init__(self) -> None:
        """Ask the driver; NVML must be initialised."""
        self.driver_version: str | None = _optional(pynvml.nvmlSystemGetDriverVersion)
        self.nvml_version: str | None = _optional(pynvml.nvmlSystemGetNVMLVersion)
        cuda = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self.cuda_version: str | None = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
        self.devices: list[Device] = []
        self.problems: list[str] = []
        for index in range(_optional(pynvml.nvmlDeviceGetCount) or 0):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
            except pynvml.NVMLError as error:
                self.problems.append(f"GPU {index} does not answer: {error}")
                continue
            sku = _optional(pynvml.nvmlDeviceGetName, handle) or "unknown NVIDIA GPU"
            self.devices.append(Device(handle, index, uuid, sku))
        self._by_uuid = {d.uuid: d for d in self.devices}

    def device(self, uuid: str) -> Device | None:
        """The GPU with this UUID; None where there is none."""
        return self._by_uuid.get(uuid)

    def gpus(self, host: str) -> list[Gpu]:
        """The host's GPUs, as a run records them; a GPU lost meanwhile is left out."""
        found = []
        for device in self.devices:
            try:
                total, limit = device.memory_total(), device.power_limit()
            except GpuLost:
                continue
            found.append(
                Gpu(
                    host=host,
                    gpu_index=device.index,
                    gpu_uuid=device.uuid,
                    sku=device.sku,
                    memory_total_bytes=total,
                    power_limit_w=limit,
                )
            )
        return found

    def free_memory(self, uuid: str) -> int | None:
        """Bytes free on a GPU; None where it is unknown, lost or does not say."""
        device = self.device(uuid)
        try:
            return None if device is None else device.memory_free()
        except GpuLost:
            return None

    def linked(self, uuids: Sequence[str]) -> bool:
        """Whether all these GPUs have NVLink up, and a PCIe of generation 5 or newer."""
        devices = [self.device(uuid) for uuid in uuids]
        try:
            return bool(devices) and all(
                d is not None and d.nvlink() and (d.pcie_generation() or 0) >= 5 for d in devices
            )
        except GpuLost:
            return False

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes that compute on a GPU; empty where it is unknown, lost or does not say."""
        device = self.device(uuid)
        try:
            return () if device is None else device.processes() or ()
        except GpuLost:
            return ()

    def close(self) -> None:
        """Let the driver go. Only when no other thread is inside a call: one may hang there, holding NVML's lock."""
        _optional(pynvml.nvmlShutdown)


def open_nvml(timeout_s: float = OPEN_TIMEOUT_S) -> Nvml:
    """Initialise NVML and list the GPUs.

    Args:
        timeout_s: How long a driver may take; a broken one never answers, and its call cannot be interrupted.

    Raises:
        NvmlUnavailable: There is no driver, it does not let us in, or it does not answer in time.
    """
    opened: list[Nvml] = []
    failures: list[pynvml.NVMLError] = []

    def work() -> None:
        try:
            pynvml.nvmlInit()
            opened.append(Nvml())
        except pynvml.NVMLError as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="nvml-open", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if opened:
        return opened[0]
    if failures:
        code = failures[0].value
        reason, hint = _REASONS.get(code, (f"the NVIDIA driver answers: {error_text(code)}", "does nvidia-smi work?"))
        raise NvmlUnavailable(reason, hint=hint)
    raise NvmlUnavailable(
        f"the NVIDIA driver did not answer within {timeout_s:.0f} s", hint="does nvidia-smi answer? see dmesg for Xid"
    )


def _optional(call: Callable[..., Any], *arguments: Any) -> Any | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
