"""A program in a pseudo-terminal of its own: what it paints, when, and keys pressed into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence

_CONTROL = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_].*?\x1b\\|.)", re.DOTALL)


class Terminal:
    """Starts the program at once; leaving the `with` block ends it.

    Args:
        size: Columns, rows.
        controlling: Whether it is the program's controlling terminal, whose loss the kernel tells by SIGHUP.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        size: tuple[int, int] = (120, 40),
        *,
        controlling: bool = True,
    ) -> None:
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.modes_before = termios.tcgetattr(inner)
        self._inner = inner
        self.pieces: list[tuple[float, bytes]] = []
        self._arrived = threading.Condition()
        self._closing = threading.Event()
        self.began = time.monotonic()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*args], env={**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"}, stdin=inner, stdout=inner,
            stderr=inner, start_new_session=True, preexec_fn=take_terminal if controlling else None,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Take the terminal away, as a closed window does."""
        self._closing.set()
        self._reader.join()
        for fd in (self.fd, self._inner):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read(self) -> None:
        while not self._closing.is_set():
            if not select.select([self.fd], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                return
            with self._arrived:
                self.pieces.append((time.monotonic(), data))
                self._arrived.notify_all()

    def mark(self) -> int:
        """A place in the output, for `wait`'s `since`."""
        with self._arrived:
            return len(self.pieces)

    def output(self, since: int = 0) -> bytes:
        """All it wrote since that mark, control sequences included."""
        with self._arrived:
            return b"".join(data for _, data in self.pieces[since:])

    def text(self, since: int = 0) -> str:
        """What it wrote, without the control sequences."""
        return _CONTROL.sub(b"", self.output(since)).decode(errors="replace")

    def wait(self, words: str, *, since: int = 0, timeout: float = 60) -> float:
        """The time (monotonic) at which these words had been painted.

        Raises:
            AssertionError: They were not, or the program ended; with the last that was painted.
        """
        deadline = time.monotonic() + timeout
        seen = 0
        held = b""
        wanted = words.encode()
        while True:
            with self._arrived:
                new = self.pieces[since + seen :]
                if not new:
                    self._arrived.wait(0.05)
                    new = self.pieces[since + seen :]
            for at, data in new:
                seen += 1
                held += data
                if wanted in data or wanted in _CONTROL.sub(b"", held):
                    return at
                held = held[-(1 << 17) :]
            if not new and (time.monotonic() > deadline or self.process.poll() is not None):
                raise AssertionError(
                    f"{words!r} was not painted (exit status {self.process.poll()}):\n…{self.text(since)[-3000:]}"
                )

    def press(self, keys: str) -> int:
        """Type these characters. Returns the mark of the output before."""
        mark = self.mark()
        os.write(self.fd, keys.encode())
        return mark

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminal another size, as a window manager does."""
        fcntl.ioctl(self._inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.killpg(self.process.pid, signal.SIGWINCH)

    def restored(self) -> bool:
        """Whether line modes are as before, the main screen is back, and the cursor and the mouse are as they were."""
        output = self.output()
        entered, left = output.rfind(b"\x1b[?1049h"), output.rfind(b"\x1b[?1049l")
        mouse, quiet = output.rfind(b"\x1b[?1000h"), output.rfind(b"\x1b[?1000l")
        hidden, shown = output.rfind(b"\x1b[?25l"), output.rfind(b"\x1b[?25h")
        return left > entered and quiet >= mouse and shown > hidden and self._modes() == self.modes_before

    def _modes(self) -> list[object]:
        return termios.tcgetattr(self._inner)
