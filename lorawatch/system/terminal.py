"""The last step of every text to the terminal: standard output and error that let no control sequence through."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from lorawatch.text.sanitize import clean

_guarded: list[CleanStream] = []


class CleanStream(io.TextIOBase):
    """A text stream that cleans what is written to it.

    It has no `buffer`: bytes would pass it by. What draws on a terminal on purpose (rich, Textual) writes to the stream
    beneath, `raw`, and cleans its own text.

    Attributes:
        raw: The stream beneath.
        failed: What the stream beneath refused last; None where it took everything.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self.failed: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.raw.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.raw.errors

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, text: str) -> int:
        """Write the text without its control sequences.

        Raises:
            OSError: The stream beneath refuses it.
            TypeError: It is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        try:
            self.raw.write(clean(text))
        except OSError as error:
            self.failed = error
            raise
        return len(text)

    def flush(self) -> None:
        try:
            self.raw.flush()
        except OSError as error:
            self.failed = error
            raise


def guard() -> None:
    """Make this process's standard streams safe to print to: for a program's first line.

    A descriptor that the caller has closed is opened on /dev/null, since the next file that is opened would get its number
    and what is printed with it. Letters that the terminal's encoding lacks are replaced.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        _open_closed(number)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  open as long as the process
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for name in ("stdout", "stderr"):
        beneath: Any = getattr(sys, name)
        if isinstance(beneath, CleanStream):
            continue
        if isinstance(beneath, io.TextIOWrapper):
            beneath.reconfigure(errors="replace")
        _guarded.append(CleanStream(beneath))
        setattr(sys, name, _guarded[-1])


def raw_stdout() -> TextIO:
    """Standard output for what writes control sequences on purpose, and cleans its text itself."""
    return sys.stdout.raw if isinstance(sys.stdout, CleanStream) else sys.stdout


def refused(error: BaseException) -> bool:
    """Whether an error is standard output's or standard error's, and not another file's."""
    return any(stream.failed is error for stream in _guarded)


def has_no_reader() -> bool:
    """Whether standard output or standard error has lost its reader."""
    return any(isinstance(stream.failed, BrokenPipeError) for stream in _guarded)


def finish(code: int) -> int:
    """Write out what waits in the standard streams, and say so where it could not be written; for a program's last line.

    Args:
        code: The exit status as it is so far. It stays where the work went on although its display was lost; a command whose
            answer is lost fails.

    Returns:
        The exit status.
    """
    for stream in _guarded:
        seen = stream.failed
        try:
            stream.raw.flush()
        except OSError as error:
            stream.failed = error
        except ValueError:  # it is closed
            continue
        lost = stream.failed
        if lost is None:
            continue
        if (
            not isinstance(lost, BrokenPipeError) and stream.raw is sys.__stdout__
        ):  # a broken pipe: `| head` has its lines
            _report(lost)
            code = code if seen is not None else code or 1
        with contextlib.suppress(OSError, ValueError):  # what waits would fail once more when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.raw.fileno())
    return code


def _report(error: OSError) -> None:
    """Say on standard error, where that works, that standard output takes nothing."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"lorawatch: standard output cannot be written: {error.strerror or error}\n")
        sys.stderr.flush()


def _open_closed(number: int) -> None:
    """Open a closed descriptor on /dev/null, for this process and those it starts."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null == number:
            os.set_inheritable(number, True)
        else:
            os.dup2(null, number)
            os.close(null)
