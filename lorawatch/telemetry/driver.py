"""What lorawatch needs of a vendor's library: the seam that NVML and AMD SMI implement.

A reading is a number in the unit that its method names, or None where the card, the driver or the moment has no such
reading: never 0 instead. A method raises GpuLost where the GPU itself has gone, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from lorawatch.errors import MissingDependency
from lorawatch.run.clock_reasons import ClockReason
from lorawatch.run.directory import Gpu
from lorawatch.telemetry.vendors import Vendor

# Without persistence mode the first opening wakes every GPU, seconds each.
OPEN_TIMEOUT_S = 60.0
UNSUPPORTED_PAUSE_S = 300.0
ERROR_PAUSE_S = 5.0


class DriverUnavailable(MissingDependency):
    """No readings can be had from a vendor's driver here.

    Attributes:
        reason: Why, one sentence for people; `hint` says what to do.
        installed: Whether the Python package that speaks to the driver is here.
    """

    def __init__(self, reason: str, *, hint: str | None = None, installed: bool = True) -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason
        self.installed = installed


class GpuLost(Exception):
    """The driver no longer reaches the GPU: it fell off the bus, or needs a reset.

    Attributes:
        gpu_uuid: Which one.
        reason: The library's word for it.
    """

    def __init__(self, gpu_uuid: str, reason: str) -> None:
        super().__init__(f"{gpu_uuid}: {reason}")
        self.gpu_uuid = gpu_uuid
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU.

    Attributes:
        pid: As the host numbers processes; inside a container that may be another number than the process's own.
        memory_bytes: None where the driver does not report it.
    """

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """How a GPU is set up, for people; None where the card does not say, or its vendor has no such thing."""

    free_memory_bytes: int | None
    power_limit_w: float | None
    default_power_limit_w: float | None
    energy_counter: bool
    persistence_mode: bool | None = None
    compute_mode: str | None = None
    mig_mode: bool | None = None
    ecc_mode: bool | None = None


class GpuDevice(Protocol):
    """One GPU's readings. Safe for several threads.

    The sampler's fast lane (up to 10 times a second) asks for the first group, so each of these is one call of at most
    a millisecond or two; its slow lane (once a second) asks for the second. The third is asked for rarely.
    """

    @property
    def index(self) -> int:
        """The driver's own index."""

    @property
    def uuid(self) -> str:
        """`GPU-…`, as torch gives it too."""

    @property
    def sku(self) -> str:
        """The model as the driver names it."""

    # --- the fast lane

    def power(self) -> tuple[float | None, float | None]:
        """Watts now, and the driver's own average; a card with one reading only gives that as the first."""

    def memory_used(self) -> int | None:
        """Bytes that no process could have any more."""

    def utilization(self) -> float | None:
        """Percent of the driver's last sample period in which the GPU computed."""

    def sm_clock(self) -> int | None:
        """MHz of what computes."""

    def event_reasons(self) -> ClockReason | None:
        """Why the clocks are not higher."""

    # --- the slow lane

    def energy(self) -> float | None:
        """Joules by the card's counter, since the driver was loaded."""

    def temperature(self) -> float | None:
        """Degrees Celsius of the GPU die."""

    def power_limit(self) -> float | None:
        """Watts that the card is held to now."""

    def memory_clock(self) -> int | None:
        """MHz."""

    def uncorrected_errors(self) -> int | None:
        """Memory errors since the driver was loaded that ECC could not correct."""

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """The processes that compute on this GPU."""

    # --- by the registry's names

    def read(self, column: str) -> float | int | None:
        """A reading that a lane takes, by its column in `lorawatch.run.metrics`; None where the driver has none of it."""

    # --- asked rarely

    def memory_total(self) -> int | None:
        """Bytes."""

    def memory_free(self) -> int | None:
        """Bytes."""

    def architecture(self) -> str | None:
        """What a torch build must have kernels for, as torch names it: `sm_90`, `gfx942`."""

    def facts(self) -> GpuFacts:
        """How the GPU is set up."""


class GpuDriver(Protocol):
    """An opened driver and its GPUs."""

    @property
    def vendor(self) -> Vendor:
        """Whose it is."""

    @property
    def driver_version(self) -> str | None:
        """The kernel driver's version; None where it does not say."""

    @property
    def cuda_version(self) -> str | None:
        """The newest CUDA that the driver can run, such as `13.0`; None for another vendor's."""

    @property
    def devices(self) -> Sequence[GpuDevice]:
        """The GPUs that answered, by index, whatever devices the environment chooses."""

    @property
    def problems(self) -> Sequence[str]:
        """What is wrong with GPUs that did not answer, one line each."""

    def words(self) -> str:
        """The versions, for people."""

    def device(self, uuid: str) -> GpuDevice | None:
        """The GPU with this UUID; None where there is none."""

    def gpus(self, host: str) -> list[Gpu]:
        """The host's GPUs, as a run records them; a GPU lost meanwhile is left out."""

    def free_memory(self, uuid: str) -> int | None:
        """Bytes free on a GPU; None where it is unknown, lost or does not say."""

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes that compute on a GPU; empty where it is unknown, lost or does not say."""

    def linked(self, uuids: Sequence[str]) -> bool:
        """Whether all these GPUs have NVLink up, and a PCIe of generation 5 or newer; False for another vendor's."""

    def close(self) -> None:
        """Let the driver go. Only when no other thread is inside a call: one may hang there, holding the library."""


D = TypeVar("D", bound=GpuDevice)


class DeviceList(Generic[D]):
    """What every driver answers from its devices' readings.

    Attributes:
        vendor: Whose GPUs they are.
        devices: Those that answered, by index.
        problems: One line for each that did not.
    """

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.devices: list[D] = []
        self.problems: list[str] = []

    def device(self, uuid: str) -> D | None:
        """The GPU with this UUID; None where there is none."""
        return next((d for d in self.devices if d.uuid == uuid), None)

    def gpus(self, host: str) -> list[Gpu]:
        """The host's GPUs, as a run records them; a GPU lost meanwhile is left out."""
        listed = []
        for device in self.devices:
            try:
                total, limit = device.memory_total(), device.power_limit()
            except GpuLost:
                continue
            listed.append(
                Gpu(
                    host=host,
                    gpu_index=device.index,
                    gpu_uuid=device.uuid,
                    sku=device.sku,
                    memory_total_bytes=total,
                    power_limit_w=limit,
                    vendor=self.vendor.key,
                )
            )
        return listed

    def free_memory(self, uuid: str) -> int | None:
        """Bytes free on a GPU; None where it is unknown, lost or does not say."""
        device = self.device(uuid)
        try:
            return None if device is None else device.memory_free()
        except GpuLost:
            return None

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes that compute on a GPU; empty where it is unknown, lost or does not say."""
        device = self.device(uuid)
        try:
            return () if device is None else device.processes() or ()
        except GpuLost:
            return ()


Reader = Callable[[Any], float | int | None]
"""A method of a device that gives one reading."""


class ReadByColumn:
    """What every device answers for a lane that asks by the registry's columns.

    Attributes:
        readers: The driver's readers of the metrics that a lane takes by name; power and energy it takes itself, to date its
            lines.
    """

    readers: ClassVar[Mapping[str, Reader]] = {}

    def read(self, column: str) -> float | int | None:
        """A reading by its column in `lorawatch.run.metrics`, a plain number; None where the driver has no such reading.

        Raises:
            GpuLost: The GPU has gone.
        """
        reader = self.readers.get(column)
        value = None if reader is None else reader(self)
        return int(value) if isinstance(value, ClockReason) else value


class Pauses:
    """Readings that were refused, and until when they are left alone: asking an old card for its energy ten times a
    second would cost as much as reading it."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def over(self, reading: str) -> bool:
        """Whether a reading is asked for now."""
        until = self._until.get(reading)
        return until is None or time.monotonic() >= until

    def begin(self, reading: str, *, lasting: bool) -> None:
        """Leave a reading alone for a while.

        Args:
            lasting: The answer stays the same until the driver, its settings or permissions change.
        """
        self._until[reading] = time.monotonic() + (UNSUPPORTED_PAUSE_S if lasting else ERROR_PAUSE_S)


T = TypeVar("T")


def answer_within(timeout_s: float, ask: Callable[[], T], name: str) -> T:
    """What `ask` returns or raises, asked on a thread: a broken driver never answers, and its call cannot be interrupted.

    Raises:
        TimeoutError: It did not answer in time; the thread is left behind.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(name)
    return answers[0]
