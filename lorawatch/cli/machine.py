"""The GPUs of this machine, for commands that need to know them; none where there is no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorawatch.run.directory import Gpu
    from lorawatch.telemetry.driver import GpuDriver


def open_driver() -> GpuDriver | None:
    """The driver of this machine's GPUs, or None where none can be had."""
    from lorawatch.telemetry import opening
    from lorawatch.telemetry.driver import DriverUnavailable

    try:
        return opening.open_driver()
    except DriverUnavailable:
        return None


def gpus_of(driver: GpuDriver | None) -> list[Gpu]:
    """This host's GPUs, by index."""
    from lorawatch.system.home import host_name

    return driver.gpus(host_name()) if driver else []
