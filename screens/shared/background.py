"""Slow questions (to the history, the disk, the driver), answered on a thread of their own."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from lorawatch.errors import HistoryDamaged, LorawatchError


class Answered(Message, bubble=False):
    """The answer to `Background.ask`, delivered to the widget or screen that asked.

    Attributes:
        key: The question, as it was asked.
        value: What the work returned; None where it failed.
        error: Why it failed; None where it did not.
    """

    def __init__(self, key: str, value: Any, error: LorawatchError | None) -> None:
        super().__init__()
        self.key = key
        self.value = value
        self.error = error


class Background:
    """One thread that does the screens' slow work in order; a newer question of the same key replaces one that waits.

    Work must return within about half a second, or check `closing`: quitting waits no longer than that.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._wake = threading.Condition()
        self._waiting: OrderedDict[tuple[int, str], tuple[MessagePump, Callable[[], Any]]] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._rebuilding: threading.Thread | None = None

    def ask(self, node: MessagePump, key: str, work: Callable[[], Any]) -> None:
        """Do `work` on the thread and post `Answered(key, …)` to `node`; returns at once."""
        with self._wake:
            if self.closing.is_set():
                return
            self._waiting.pop((id(node), key), None)
            self._waiting[id(node), key] = (node, work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="background", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float = 0.8) -> bool:
        """Drop what waits and end the thread. Returns whether it has ended."""
        with self._wake:
            self.closing.set()
            self._waiting.clear()
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self.closing.is_set():
                    self._wake.wait()
                if self.closing.is_set():
                    return
                (_, key), (node, work) = self._waiting.popitem(last=False)
            value: Any = None
            error: LorawatchError | None = None
            try:
                value = work()
            except HistoryDamaged as damage:
                error = damage
                self._rebuild(damage)
            except LorawatchError as failure:
                error = failure
            except Exception as unexpected:  # noqa: BLE001 - it is shown where it was asked for
                error = LorawatchError(f"{type(unexpected).__name__}: {unexpected}")
            if not self.closing.is_set() and node.is_running:
                node.post_message(Answered(key, value, error))

    def _rebuild(self, damage: HistoryDamaged) -> None:
        """Rebuild a damaged history on a thread of its own. The question is answered with the error, and asked again later.

        Quitting does not wait for it: the next reader of the history continues the rebuild.
        """
        if self._rebuilding is None or not self._rebuilding.is_alive():
            self._rebuilding = threading.Thread(target=_rebuild, args=(damage,), name="rebuild", daemon=True)
            self._rebuilding.start()


def _rebuild(damage: HistoryDamaged) -> None:
    from lorawatch.storage.repair import repair

    with contextlib.suppress(LorawatchError):  # the next question reports the error
        repair(damage)
