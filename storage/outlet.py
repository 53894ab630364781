"""Where an answer is written: a slow reader must not keep the history open, and a file is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lorawatch.errors import HistoryError
from lorawatch.system.permissions import export_mode

_WAITING_BYTES = 32 << 20
_AT_ONCE_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16


class NotWritten(Exception):
    """The output of an answer cannot be written. Not an OSError: while the history is open those are the history's.

    Attributes:
        error: Why.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Outlet:
    """Text on its way to a stream, written by a thread. Use as a context manager: leaving waits until all is written.

    A pager shows the first page and waits; the rest waits here, up to 32 MB, so that most queries have ended, and the
    history is closed, before the answer is read. The time limit of a longer one continues.

    Attributes:
        begun: Whether anything was written; a short answer is written when it is complete.
    """

    def __init__(self, stream: TextIO, timeout_s: float) -> None:
        self.begun = False
        self._stream = stream
        self._until = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._texts: deque[str] = deque()
        self._piece: list[str] = []
        self._piece_size = 0
        self._waiting = 0
        self._ended = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Outlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and (self._thread is None or not issubclass(kind, Exception)):
            return  # nothing is written yet, so that the error is the answer; or the user wants to quit
        self._hand_over()
        self._start()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            while self._thread is not None and self._thread.is_alive() and self._error is None:
                self._changed.wait(0.1)
        self._check()

    def put(self, text: str) -> None:
        """Hand over a piece of text.

        Raises:
            HistoryError: The stream did not accept the waiting text within the time limit.
            NotWritten: It cannot be written.
        """
        self._piece.append(text)
        self._piece_size += len(text)
        if self._piece_size > _PIECE_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        text = "".join(self._piece)
        self._piece, self._piece_size = [], 0
        with self._changed:
            while self._waiting > _WAITING_BYTES and self._error is None:
                left = self._until - time.monotonic()
                if left <= 0:
                    raise HistoryError(
                        f"the answer was not read within {self._timeout_s:g} s",
                        hint="a file takes it at once: -o FILE; or raise --timeout",
                    )
                self._changed.wait(left)
            self._texts.append(text)
            self._waiting += len(text)
            self._changed.notify_all()
        if self._waiting > _AT_ONCE_BYTES:
            self._start()
        self._check()

    def _start(self) -> None:
        if self._thread is None:
            self.begun = True
            self._thread = threading.Thread(target=self._write, name="outlet", daemon=True)
            self._thread.start()

    def _check(self) -> None:
        if self._error is not None:
            raise NotWritten(self._error)

    def _write(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._texts and not self._ended:
                        self._changed.wait()
                    if not self._texts:
                        break
                    piece = self._texts.popleft()
                self._stream.write(piece)
                with self._changed:
                    self._waiting -= len(piece)
                    self._changed.notify_all()
            self._stream.flush()
        except OSError as error:
            self._error = error
        except ValueError as error:  # the stream is closed
            self._error = OSError(str(error))
        finally:
            with self._changed:
                self._changed.notify_all()


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A file beside `output` that replaces it when all is written; its mode follows the user's umask.

    A pipe or `/dev/null` is written to directly.

    Raises:
        OSError: It cannot be written; the old file stays as it was.
    """
    output = Path(os.path.realpath(output))
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(output.stat().st_mode):
            yield output
            return
    mode = export_mode(output)
    # A folder of its own: in one that others may write to, no other user can have put a link in the file's place.
    with tempfile.TemporaryDirectory(prefix=f".lorawatch-{os.getpid()}-", dir=output.parent) as folder:
        temporary = Path(folder) / "answer"
        yield temporary
        temporary.chmod(mode)
        temporary.replace(output)
