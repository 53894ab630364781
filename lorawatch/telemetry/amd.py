"""AMD SMI: whether this machine has AMD's driver, and which GPUs it knows. Not tried on a card: see `amd_device`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

from lorawatch.system import visible_devices
from lorawatch.telemetry.amd_device import DRIVER_NOT_LOADED, NO_PERM, AmdDevice
from lorawatch.telemetry.driver import OPEN_TIMEOUT_S, DeviceList, DriverUnavailable, answer_within
from lorawatch.telemetry.vendors import AMD

_REASONS = {
    DRIVER_NOT_LOADED: (
        "the AMD driver is not loaded",
        "load it (modprobe amdgpu); in a container, pass in /dev/kfd and /dev/dri",
    ),
    NO_PERM: (
        "no permission to talk to the AMD driver",
        "join the groups render and video; in a container or a batch job, ask for a GPU",
    ),
}


class AmdSmi(DeviceList[AmdDevice]):
    """AMD's driver, opened, and its GPUs: `driver.GpuDriver` over amdsmi.

    Attributes:
        driver_version: The kernel driver's version, such as `6.12.12`; None where it does not say.
        library_version: AMD SMI's own.
        cuda_version: None.
    """

    def __init__(self, api: Any) -> None:
        """Ask the driver; amdsmi must be initialised."""
        super().__init__(AMD)
        self._api = api
        self.driver_version: str | None = None
        self.cuda_version: str | None = None
        version = _optional(api, "amdsmi_get_lib_version") or {}
        parts = [version.get(name) for name in ("major", "minor", "release")]
        self.library_version = None if None in parts else ".".join(map(str, parts))
        for index, handle in enumerate(api.amdsmi_get_processor_handles()):
            asic = _optional(api, "amdsmi_get_gpu_asic_info", handle)
            if asic is None:
                self.problems.append(f"GPU {index} does not answer: AMD SMI lists it, but knows nothing of it")
                continue
            if self.driver_version is None:
                driver = _optional(api, "amdsmi_get_gpu_driver_info", handle) or {}
                self.driver_version = _text(driver.get("driver_version"))
            board = _optional(api, "amdsmi_get_gpu_board_info", handle) or {}
            sku = _text(asic.get("market_name")) or _text(board.get("product_name")) or "unknown AMD GPU"
            enumeration = _optional(api, "amdsmi_get_gpu_enumeration_info", handle) or {}
            uuid = identity(enumeration, asic.get("asic_serial"), index)
            self.devices.append(AmdDevice(api, handle, index, uuid, sku))

    def words(self) -> str:
        """The versions, for people."""
        return f"{self.driver_version or 'unknown version'}, AMD SMI {self.library_version or '?'}"

    def linked(self, uuids: Sequence[str]) -> bool:
        """False: what it decides was measured with NVLink only."""
        return False

    def close(self) -> None:
        """Let the driver go. Only when no other thread is inside a call."""
        _optional(self._api, "amdsmi_shut_down")


def identity(enumeration: dict[str, Any], serial: Any, index: int) -> str:
    """What a GPU is known by: the UUID that ROCm takes and torch gives, where the card has one.

    Args:
        enumeration: From amdsmi_get_gpu_enumeration_info, with `hip_uuid` (`GPU-de8287300da37c72`) and `hip_id`.
        serial: The `asic_serial` (`0xDE8287300DA37C72`), which the UUID is made of, for a library without `hip_uuid`.
        index: As amd-smi lists the GPU.
    """
    for text in (enumeration.get("hip_uuid"), serial):
        digits = str(text or "").removeprefix("GPU-").lower().removeprefix("0x")
        if re.fullmatch(r"[0-9a-f]{1,16}", digits) and int(digits, 16):
            return f"GPU-{digits.zfill(16)}"
    number = enumeration.get("hip_id")
    return visible_devices.numbered(number if isinstance(number, int) else index)


def installed() -> bool:
    """Whether the package amdsmi is here."""
    return importlib.util.find_spec("amdsmi") is not None


def open_amd(timeout_s: float = OPEN_TIMEOUT_S) -> AmdSmi:
    """Initialise AMD SMI and list the GPUs.

    Args:
        timeout_s: How long the driver may take.

    Raises:
        DriverUnavailable: The package, its library or the driver is not there, does not let us in, or does not answer.
    """
    if not installed():
        raise DriverUnavailable(
            "AMD GPUs are not sampled: the package amdsmi is not installed",
            hint=f"{sys.executable} -m pip install 'lorawatch[amd]', or the amdsmi in /opt/rocm/share/amd_smi",
            installed=False,
        )
    api = _loaded()

    def opened() -> AmdSmi:
        api.amdsmi_init()
        return AmdSmi(api)

    try:
        return answer_within(timeout_s, opened, "amdsmi-open")
    except api.AmdSmiLibraryException as error:
        answer = f"the AMD driver answers: {error.get_error_info(detailed=False)}"
        reason, hint = _REASONS.get(error.get_error_code(), (answer, "does amd-smi list work?"))
        raise DriverUnavailable(reason, hint=hint) from error
    except TimeoutError:
        raise DriverUnavailable(
            f"the AMD driver did not answer within {timeout_s:.0f} s",
            hint="does amd-smi list answer? see dmesg for amdgpu",
        ) from None
    except Exception as error:
        words = f"AMD SMI fails: {type(error).__name__}: {error}"
        raise DriverUnavailable(words, hint="amdsmi must be of the version of ROCm that is installed") from error


def _loaded() -> Any:
    """The package amdsmi, imported: it loads libamd_smi.so, and prints to standard output, which is for data, where it
    cannot."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            import amdsmi

            return amdsmi
    except Exception as error:
        words = printed.getvalue().strip().splitlines() or [f"{type(error).__name__}: {error}"]
        raise DriverUnavailable(
            f"the package amdsmi does not load: {words[0]}",
            hint="install ROCm's amd-smi-lib, and the amdsmi of the same version",
        ) from error


def _optional(api: Any, function: str, *arguments: Any) -> Any | None:
    try:
        return getattr(api, function)(*arguments)
    except Exception:  # noqa: BLE001 - an older package lacks a function, or fails on what its library gives
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in ("", "N/A") else None
