"""NVML: whether this machine has a driver that answers, and which GPUs it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from lorawatch.telemetry.driver import OPEN_TIMEOUT_S, DeviceList, DriverUnavailable, GpuLost, answer_within
from lorawatch.telemetry.nvml_device import NvmlDevice, error_text
from lorawatch.telemetry.vendors import NVIDIA

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


class Nvml(DeviceList[NvmlDevice]):
    """NVIDIA's driver, opened, and its GPUs: `driver.GpuDriver` over pynvml.

    Attributes:
        driver_version: The kernel driver's version, such as `580.159.04`; None where it does not say.
        nvml_version: The library's own version.
        cuda_version: The newest CUDA the driver can run, such as `13.0`.
        devices: The GPUs that answered, in PCI order, whatever devices the environment chooses.
        problems: What is wrong with GPUs that did not answer, one line each.
    """

    def __init__(self) -> None:
        """Ask the driver; NVML must be initialised."""
        super().__init__(NVIDIA)
        self.driver_version: str | None = _optional(pynvml.nvmlSystemGetDriverVersion)
        self.nvml_version: str | None = _optional(pynvml.nvmlSystemGetNVMLVersion)
        cuda = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self.cuda_version: str | None = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
        for index in range(_optional(pynvml.nvmlDeviceGetCount) or 0):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
            except pynvml.NVMLError as error:
                self.problems.append(f"GPU {index} does not answer: {error}")
                continue
            sku = _optional(pynvml.nvmlDeviceGetName, handle) or "unknown NVIDIA GPU"
            self.devices.append(NvmlDevice(handle, index, uuid, sku))

    def words(self) -> str:
        """The versions, for people."""
        versions = f"{self.driver_version or 'unknown version'}, NVML {self.nvml_version or '?'}"
        return f"{versions}, up to CUDA {self.cuda_version}" if self.cuda_version else versions

    def linked(self, uuids: Sequence[str]) -> bool:
        """Whether all these GPUs have NVLink up, and a PCIe of generation 5 or newer."""
        devices = [self.device(uuid) for uuid in uuids]
        try:
            return bool(devices) and all(
                d is not None and d.nvlink() and (d.pcie_generation() or 0) >= 5 for d in devices
            )
        except GpuLost:
            return False

    def close(self) -> None:
        """Let the driver go. Only when no other thread is inside a call: one may hang there, holding NVML's lock."""
        _optional(pynvml.nvmlShutdown)


def open_nvml(timeout_s: float = OPEN_TIMEOUT_S) -> Nvml:
    """Initialise NVML and list the GPUs.

    Args:
        timeout_s: How long a driver may take; a broken one never answers, and its call cannot be interrupted.

    Raises:
        DriverUnavailable: There is no driver, it does not let us in, or it does not answer in time.
    """

    def opened() -> Nvml:
        pynvml.nvmlInit()
        return Nvml()

    try:
        return answer_within(timeout_s, opened, "nvml-open")
    except pynvml.NVMLError as error:
        code = error.value
        reason, hint = _REASONS.get(code, (f"the NVIDIA driver answers: {error_text(code)}", "does nvidia-smi work?"))
        raise DriverUnavailable(reason, hint=hint) from error
    except TimeoutError:
        raise DriverUnavailable(
            f"the NVIDIA driver did not answer within {timeout_s:.0f} s",
            hint="does nvidia-smi answer? see dmesg for Xid",
        ) from None
    except Exception as error:
        words = f"the NVIDIA driver's library fails: {type(error).__name__}: {error}"
        raise DriverUnavailable(words, hint="does nvidia-smi work?") from error


def _optional(call: Callable[..., Any], *arguments: Any) -> Any | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
