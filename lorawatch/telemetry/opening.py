"""Which driver answers for this machine's GPUs: NVIDIA's first, else AMD's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.telemetry.driver import OPEN_TIMEOUT_S, DriverUnavailable, GpuDriver
from lorawatch.telemetry.vendors import AMD, NVIDIA, Vendor


@dataclass(frozen=True, slots=True)
class Attempt:
    """A vendor's driver, opened, or why not: one of the two is None."""

    vendor: Vendor
    driver: GpuDriver | None
    failure: DriverUnavailable | None = None


def attempts(timeout_s: float = OPEN_TIMEOUT_S) -> list[Attempt]:
    """Open one vendor's driver after the other, until one knows a GPU.

    Args:
        timeout_s: How long each may take.
    """
    tried: list[Attempt] = []
    for vendor, open_it in ((NVIDIA, _open_nvml), (AMD, _open_amd)):
        try:
            driver = open_it(timeout_s)
        except DriverUnavailable as failure:
            tried.append(Attempt(vendor, None, failure))
            continue
        tried.append(Attempt(vendor, driver))
        if driver.devices or driver.problems:
            break
    return tried


def choose(tried: Sequence[Attempt]) -> GpuDriver:
    """The driver that knows a GPU, else one that answers.

    Raises:
        DriverUnavailable: None answers: why, of a vendor whose GPU is in this machine if there is one.
    """
    opened = [a.driver for a in tried if a.driver is not None]
    if opened:
        driver = next((d for d in opened if d.devices or d.problems), opened[0])
        for other in opened:
            if other is not driver:
                other.close()
        return driver
    failures = [(a.vendor, a.failure) for a in tried if a.failure is not None]
    raise next((failure for vendor, failure in failures if vendor.present()), failures[0][1])


def open_driver(timeout_s: float = OPEN_TIMEOUT_S) -> GpuDriver:
    """The driver of this machine's GPUs.

    Raises:
        DriverUnavailable: There is none, it does not let us in, or it does not answer in time.
    """
    return choose(attempts(timeout_s))


def _open_nvml(timeout_s: float) -> GpuDriver:
    try:
        from lorawatch.telemetry.nvml import open_nvml
    except ImportError as error:
        raise DriverUnavailable(
            f"not asked: {error}", hint=f"{sys.executable} -m pip install nvidia-ml-py", installed=False
        ) from error
    return open_nvml(timeout_s)


def _open_amd(timeout_s: float) -> GpuDriver:
    from lorawatch.telemetry.amd import open_amd

    return open_amd(timeout_s)
