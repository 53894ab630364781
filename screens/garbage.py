"""Garbage is collected while the user does not wait.

Textual's strips refer to themselves, so that painting leaves some 20,000 objects a second that only a collection frees. A
collection that starts by itself starts where objects are made, after a key: 25 ms and more in which nothing is painted.
"""

from __future__ import annotations

import gc
import time

EVERY_S = 0.5
_SETTLED_S = 3.0
_FEW = 2_000
_SHARE = 0.02


class Collector:
    """Collects often, so that each time there is little; the objects of the first screens are left out once these stand.

    Where a collection takes long, since there are many objects, the next one waits: it costs no more than a fiftieth of the
    time.
    """

    def __init__(self) -> None:
        gc.set_threshold(200_000, 20, 50)  # for times in which the screens' thread cannot collect
        self._settles_at: float | None = time.monotonic() + _SETTLED_S
        self._due_at = 0.0

    def collect(self) -> None:
        """Collect if there is something to; called every `EVERY_S`."""
        began = time.monotonic()
        if began < self._due_at or gc.get_count()[0] < _FEW:
            return
        gc.collect()
        if self._settles_at is not None and began >= self._settles_at:
            self._settles_at = None
            gc.freeze()
        now = time.monotonic()
        self._due_at = now + (now - began) / _SHARE
