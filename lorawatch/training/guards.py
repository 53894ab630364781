"""What a rank does first: it ends with its agent, and its output cannot end a run.

This module runs before torch is imported, and imports only the standard library and small modules.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lorawatch.system.permissions import make_private

RECORDER_VARIABLE = "LORAWATCH_RECORDER_PID"
_PR_SET_PDEATHSIG = 1
_kept: list[IO[Any]] = []  # files that faulthandler writes to must stay open


def die_with_parent() -> None:
    """Ask the kernel to send SIGKILL when the agent dies. Without that, its ranks would continue to train.

    If the agent died before this request, the parent has changed, or is the recorder, which adopts orphans. Then this
    process ends here.
    """
    before = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    orphan = before == 1 or str(before) == os.environ.get(RECORDER_VARIABLE)
    if os.getppid() != before or orphan:
        os.kill(os.getpid(), signal.SIGKILL)


def redirect_output(path: Path) -> None:
    """Send file descriptors 1 and 2 to the rank's log. Where the log cannot be opened they stay as they are."""
    with contextlib.suppress(OSError):
        make_private(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


class QuietStream(io.TextIOBase):
    """Text over a file descriptor. Writing never raises: what a full disk or a closed pipe refuses is lost."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        rest = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        return len(text)


def quiet_streams() -> None:
    """Replace sys.stdout and sys.stderr with streams that never raise. SIGPIPE stays ignored, as Python sets it."""
    sys.stdout = QuietStream(1)
    sys.stderr = QuietStream(2)


def dump_stacks_on_signal(path: Path) -> None:
    """SIGUSR1 appends the Python stacks of all threads to a file, and the rank continues. A crash dumps them to the
    log.
    """
    file: IO[Any]
    try:
        make_private(path.parent)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115  stays open until the process ends
    except OSError:
        file = os.fdopen(os.dup(2), "w")
    _kept.append(file)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True, chain=False)
    faulthandler.enable(file=2, all_threads=True)


def on_termination(callback: Callable[[int], None]) -> None:
    """Call a function on a side thread for SIGTERM and SIGINT, even while the main thread is blocked in a collective.

    Python runs signal handlers on the main thread between bytecodes, which a blocked collective never reaches. The C
    handler writes to the wakeup descriptor at once.

    Args:
        callback: Gets the signal's number.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        while True:
            for number in os.read(reader, 64):
                if number in (signal.SIGTERM, signal.SIGINT):
                    callback(number)

    threading.Thread(target=listen, name="lorawatch-signals", daemon=True).start()
