"""Waits for space on a full disk at the end of a training, so that what was trained is not lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from lorawatch.training.observer import Observer
from lorawatch.training.outcome import classify

WAIT_VARIABLE = "LORAWATCH_DISK_WAIT_S"
_WAIT_S = 60.0
_RETRY_S = 1.0


def disk_wait_s() -> float:
    """Seconds to wait for space: 60, or the value of LORAWATCH_DISK_WAIT_S."""
    try:
        return max(float(os.environ.get(WAIT_VARIABLE, _WAIT_S)), 0.0)
    except ValueError:
        return _WAIT_S


def save_with_retry(save: Callable[[], None], what: str, observer: Observer) -> None:
    """Save something. While the disk is full, try again for `disk_wait_s` seconds.

    Args:
        save: Saves it completely or not at all.
        what: What is saved, for messages: `the adapter`.
        observer: Gets an event where it has to wait.

    Raises:
        Exception: What `save` raised last.
    """
    deadline = time.monotonic() + disk_wait_s()
    waits = False
    while True:
        try:
            return save()
        except Exception as error:
            if classify(error).failure != "disk_full" or time.monotonic() > deadline:
                raise
            if not waits:
                waits = True
                words = f"{what} does not fit on the disk: waiting {disk_wait_s():.0f} s for space"
                observer.emit_event("disk_full", words, "warning")
            time.sleep(_RETRY_S)
