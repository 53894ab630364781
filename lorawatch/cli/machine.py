"""The GPUs of this machine, for commands that need to know them; none where there is no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorawatch.run.directory import Gpu
    from lorawatch.telemetry.nvml import Nvml


def open_driver() -> Nvml | None:
    """NVML, or None where it cannot be had."""
    from lorawatch.telemetry.nvml import NvmlUnavailable, open_nvml

    try:
        return open_nvml()
    except NvmlUnavailable:
        return None


def gpus_of(nvml: Nvml | None) -> list[Gpu]:
    """This host's GPUs, by index."""
    from lorawatch.system.home import host_name

    return nvml.gpus(host_name()) if nvml else []
