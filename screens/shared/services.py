"""The app's services for its screens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lorawatch.run.directory import Gpu
    from lorawatch.screens.shared.background import Background
    from lorawatch.watching.frame import Frame
    from lorawatch.watching.watcher import Watcher


class AppServices(Protocol):
    """Services that all screens share; `LorawatchApp` implements them."""

    host: str
    machine: tuple[Gpu, ...]
    machine_words: str
    last_frame: Frame | None
    background: Background

    @property
    def watcher(self) -> Watcher: ...

    def open_live(self, run_id: str) -> None: ...

    def open_replay(self, run_id: str, speed: float = 1.0) -> None: ...

    def request_stop(self, run_id: str, *, now: bool) -> None: ...

    def request_checkpoint(self, run_id: str) -> None: ...

    def adopt(self, run_id: str) -> None: ...
