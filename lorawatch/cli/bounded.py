"""Work in a process of its own with bounds on its memory and time: what goes past them ends that process and no other."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from lorawatch import errors
from lorawatch.errors import HistoryError, LorawatchError

MEMORY_BYTES = 1792 << 20
"""What the process may take beyond what it has at its begin: DuckDB's own limit, and what that does not count."""
_GRACE_S = 10.0
_DONE = b"\n"
_PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG


class _Failure(msgspec.Struct, omit_defaults=True):
    """How the work ended, from the process that did it."""

    kind: str
    message: str
    hint: str | None = None
    details: dict[str, Any] = {}


def run_bounded(work: Callable[[Callable[[], None]], None], timeout_s: float, folders: Sequence[Path]) -> None:
    """Do the work in a fork of this process, which must have no other threads.

    Where standard output is no file, as in a test, it is done here.

    Args:
        work: Takes a function to call when what remains (a slow reader's) may take as long as it likes.
        timeout_s: The work ends itself after this; a while later its process is ended.
        folders: Where a process that was ended may have left a folder named `.spill-PID-…` or `.lorawatch-PID-…`.

    Raises:
        LorawatchError: What the work raised, or that it went past its bounds.
    """
    try:
        sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        work(lambda: None)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with _ended_by_signals():
        _run(work, timeout_s, folders)


def _run(work: Callable[[Callable[[], None]], None], timeout_s: float, folders: Sequence[Path]) -> None:
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(reader)
        _do(work, writer, parent)
    os.close(writer)
    try:
        report = _listen(reader, timeout_s)
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _clear(child, folders)
        raise
    finally:
        os.close(reader)
    if report:
        _raise(report)
    if status:
        _clear(child, folders)
        code = os.waitstatus_to_exitcode(status)
        raise HistoryError(
            "the query was ended by " + (signal.Signals(-code).name if code < 0 else f"exit status {code}")
            + f": most likely it needs more than {MEMORY_BYTES >> 20} MB of memory",
            hint="ask for less at once, or ask a copy: lorawatch snapshot FILE",
        )  # fmt: skip


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Meanwhile a signal that ends this process is an exception, so that the fork ends too and leaves nothing behind."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread, which has no handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _do(work: Callable[[Callable[[], None]], None], writer: int, parent: int) -> NoReturn:
    """The fork's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        _bound(parent)
        try:
            work(lambda: _send(writer, _DONE))
            sys.stdout.flush()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:  # noqa: BLE001  the parent reports it
            _send(writer, msgspec.json.encode(_failure(error)))
            code = 0
    finally:
        os._exit(code)


def _bound(parent: int) -> None:
    """No more memory than that, and of all processes the first to go where the machine has none left."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        has = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = has + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most if soft < 0 else min(most, soft), hard))
    with contextlib.suppress(OSError, AttributeError, ImportError):
        import ctypes

        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _listen(reader: int, timeout_s: float) -> bytes:
    """What the fork reports until its end; it may take its time once it has reported that the work is done."""
    until: float | None = time.monotonic() + timeout_s + _GRACE_S
    report = b""
    while True:
        left = None if until is None else max(until - time.monotonic(), 0)
        if not select.select([reader], [], [], left)[0]:
            raise HistoryError(
                f"the query did not end within {timeout_s:g} s, and could not be interrupted",
                hint="ask for less at once, or ask a copy: lorawatch snapshot FILE",
            )
        piece = os.read(reader, 1 << 16)
        if not piece:
            return report.strip()
        report += piece
        until = None if report.startswith(_DONE) else until


def _failure(error: BaseException) -> _Failure:
    if isinstance(error, LorawatchError):
        details = {k: v for k, v in vars(error).items() if k not in ("message", "hint")}
        return _Failure(type(error).__name__, error.message, error.hint, details)
    if isinstance(error, MemoryError):
        return _Failure("HistoryError", "the answer needs more memory than a query may take", "ask for less at once")
    if isinstance(error, OSError):
        return _Failure("OSError", error.strerror or str(error), details={"errno": error.errno})
    return _Failure("", "".join(traceback.format_exception(error)))


def _raise(report: bytes) -> NoReturn:
    failure = msgspec.json.decode(report, type=_Failure)
    if failure.kind == "OSError":
        raise OSError(failure.details["errno"], failure.message)
    kind = getattr(errors, failure.kind, None) if failure.kind else None
    if kind is None:
        raise RuntimeError(failure.message)
    error: LorawatchError = kind(failure.message, hint=failure.hint)
    for name, value in failure.details.items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    raise error


def _send(writer: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(writer, data)


def _clear(child: int, folders: Sequence[Path]) -> None:
    """Remove what the process could not."""
    for folder in folders:
        for name in (f".lorawatch-{child}-*", f".spill-{child}-*"):
            for left in folder.glob(name):
                shutil.rmtree(left, ignore_errors=True)
