"""A process of its own for work that needs torch: its signals, its GPU, its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from lorawatch.errors import LorawatchError
from lorawatch.system import visible_devices
from lorawatch.system.interpreter import own_module
from lorawatch.system.permissions import users_umask
from lorawatch.system.quiet import QUIET

if TYPE_CHECKING:
    from lorawatch.run.directory import Gpu


def run_module(
    module: str, arguments: Sequence[str], *, given: bytes | None = None, capture: bool = False, gpu: Gpu | None = None
) -> tuple[int, bytes]:
    """Run a module to its end on this terminal; SIGINT and SIGTERM end it too.

    Args:
        given: Its standard input; None: this process's.
        capture: Return its standard output instead of showing it.
        gpu: The only GPU that it sees; None: as the environment has it.

    Returns:
        Its exit status, as a shell gives it, and what was captured.

    Raises:
        LorawatchError: It does not start.
    """
    environment = {**QUIET, "PYTHONWARNINGS": "ignore", **os.environ}
    if gpu is not None:
        environment |= visible_devices.showing(gpu.vendor, [gpu.gpu_uuid])
    # On a terminal the child gets ctrl-C by itself.
    alone = not any(os.isatty(fd) for fd in (0, 1, 2) if _is_open(fd))
    children: list[subprocess.Popen[bytes]] = []
    waiting: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        waiting.append(number)
        if children and (alone or number != signal.SIGINT):
            children[0].send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(
            own_module(module, *arguments),
            env=environment,
            umask=users_umask(),  # it fills the cache of models, which others may share
            stdin=None if given is None else subprocess.PIPE,
            stdout=subprocess.PIPE if capture else None,
        )
        children.append(child)
        for number in waiting:  # one that came before there was a child
            child.send_signal(number)
        out, _ = child.communicate(given)
    except OSError as error:
        raise LorawatchError(f"{module} did not start: {error.strerror or error}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode, out or b""


def freest_gpu() -> Gpu | None:
    """The GPU with the most free memory, by the driver, which opens no context on any; None where no driver answers or the
    user has chosen."""
    if visible_devices.chosen(os.environ):
        return None
    from lorawatch.cli.machine import gpus_of, open_driver

    driver = open_driver()
    if driver is None:
        return None
    return max(gpus_of(driver), key=lambda gpu: driver.free_memory(gpu.gpu_uuid) or 0, default=None)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
