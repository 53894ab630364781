"""A user's command on its way to the recorder that starts it: through a pipe, since a file or a command line would keep the
secrets that may stand among its arguments."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lorawatch.errors import LorawatchError


def send(command: Sequence[str], pipe: IO[bytes], log: Path) -> None:
    """Write a command into a pipe, and close it.

    Args:
        log: Where its reader writes what goes wrong.

    Raises:
        LorawatchError: It has no reader.
    """
    words = b"\0".join(os.fsencode(word) for word in command)
    try:
        with pipe:
            pipe.write(b"%d\n" % len(words) + words)
    except OSError as error:
        with contextlib.suppress(OSError):
            pipe.close()
        raise LorawatchError(
            f"the recorder ended before it began: {error.strerror or error}", hint=f"its last words are in {log}"
        ) from None


def receive(pipe: IO[bytes]) -> list[str] | None:
    """The command that `send` writes, byte for byte; None where none, or only a part of one, arrives."""
    head, end, words = pipe.read().partition(b"\n")
    if not end or head != b"%d" % len(words):
        return None
    return [os.fsdecode(word) for word in words.split(b"\0")]
