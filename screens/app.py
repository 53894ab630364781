"""The app: its modes, the services that all screens share, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen

from lorawatch.errors import LorawatchError
from lorawatch.run.directory import ENDED, Gpu, RunDir
from lorawatch.screens.garbage import EVERY_S, Collector
from lorawatch.screens.shared.background import Answered, Background
from lorawatch.system.home import host_name
from lorawatch.system.interpreter import own_module
from lorawatch.system.permissions import users_umask

if TYPE_CHECKING:
    from textual.driver import Driver

    from lorawatch.watching.frame import Frame
    from lorawatch.watching.watcher import Watcher


class FrameReady(Message, bubble=False):
    """A new frame from the watcher; of several that wait only the newest is drawn."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, FrameReady)


class MachineKnown(Message, bubble=False):
    """The host and its GPUs are known."""

    def __init__(self, gpus: list[Gpu], words: str) -> None:
        super().__init__()
        self.gpus = gpus
        self.words = words


def _live() -> Screen[None]:
    from lorawatch.screens.live.screen import LiveScreen

    return LiveScreen()


def _runs() -> Screen[None]:
    from lorawatch.screens.runs.screen import RunsScreen

    return RunsScreen()


def _launch() -> Screen[None]:
    from lorawatch.screens.launch.screen import LaunchScreen

    return LaunchScreen()


def _compare() -> Screen[None]:
    from lorawatch.screens.compare.screen import CompareScreen

    return CompareScreen()


class LorawatchApp(App[None]):
    """lorawatch's screens around one watcher.

    Args:
        run_id: Show this run; None shows the latest live run, or this machine without one.
        replay_speed: Replay that run at this speed instead of following it.
        debug: Show tracebacks.
        driver_class: The terminal driver; None for Textual's own.
    """

    TITLE = "lorawatch"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "live": _live,
        "runs": _runs,
        "launch": _launch,
        "compare": _compare,
    }
    DEFAULT_MODE = "live"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "switch_mode('live')", "Live", show=False),
        Binding("2", "switch_mode('runs')", "Runs", show=False),
        Binding("3", "switch_mode('launch')", "Launch", show=False),
        Binding("4", "switch_mode('compare')", "Compare", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+t", "light", "Light/dark", show=False),
    ]
    CSS = """
    #too-small { display: none; layer: above; dock: top; width: 100%; height: 100%; background: $background;
        content-align: center middle; text-align: center; }
    Screen { layers: default above; }
    .-too-small #too-small { display: block; }
    Footer { background: $panel; }
    """

    machine: reactive[tuple[Gpu, ...]] = reactive(())

    def __init__(
        self,
        run_id: str | None = None,
        *,
        replay_speed: float | None = None,
        debug: bool = False,
        driver_class: type[Driver] | None = None,
    ) -> None:
        super().__init__(driver_class)
        self.host = host_name()
        self._own_machine = self.machine_words = self.host
        self.last_frame: Frame | None = None
        self.background = Background()
        self.collector: Collector | None = None  # in a process that runs only this app
        self._debug = debug
        self._wanted = run_id, replay_speed

    @cached_property
    def watcher(self) -> Watcher:
        """The thread behind Live; made when first asked for, behind the first frame."""
        from lorawatch.watching.watcher import Watcher

        watcher = Watcher(
            lambda frame: self._from_thread(FrameReady(frame)),
            lambda gpus, words: self._from_thread(MachineKnown(gpus, words)),
            self.host,
        )
        run_id, speed = self._wanted
        if run_id is not None and speed is not None:
            watcher.replay(run_id, speed)
        elif run_id is not None:
            watcher.watch(run_id)
        return watcher

    def _from_thread(self, message: Message) -> None:
        if self.is_running:
            self.post_message(message)

    def on_load(self) -> None:
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: a test
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # not signal.signal: its handler runs without waking a loop that waits in select()
                asyncio.get_running_loop().add_signal_handler(number, self.exit)

    def on_mount(self) -> None:
        self.call_after_refresh(lambda: self.watcher.start())
        if self.collector is not None:
            self.set_interval(EVERY_S, self.collector.collect)

    def on_unmount(self) -> None:
        if "watcher" in self.__dict__:
            self.watcher.stop()
        self.background.close()

    def on_frame_ready(self, message: FrameReady) -> None:
        self.last_frame = message.frame
        head = message.frame.head
        self._name_machine(head.machine if head is not None and message.frame.replay else self._own_machine)
        from lorawatch.screens.live.screen import LiveScreen

        if isinstance(self.screen, LiveScreen):
            self.screen.show(message.frame)

    def on_machine_known(self, message: MachineKnown) -> None:
        self._own_machine = f"{self.host} · {message.words}"
        self.machine = tuple(message.gpus)
        self._name_machine(self._own_machine)

    def _name_machine(self, words: str) -> None:
        """A replay shows another time, and often another machine."""
        if words != self.machine_words:
            self.machine_words = words
            for bar in self.screen.query("TopBar"):
                bar.refresh()

    # --- requests of the screens

    def open_live(self, run_id: str) -> None:
        """Show this run in Live."""
        self.watcher.watch(run_id)
        self.switch_mode("live")

    def open_replay(self, run_id: str, speed: float = 1.0) -> None:
        """Replay this run in Live."""
        self.watcher.replay(run_id, speed)
        self.switch_mode("live")

    def request_stop(self, run_id: str, *, now: bool) -> None:
        """Leave the same request as `lorawatch stop`."""
        try:
            run = RunDir.find(run_id)
            if run.state().state in ENDED:
                self.notify(f"{run_id} has ended already")
                return
            run.request("kill" if now else "stop")
        except (LorawatchError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.notify(f"{run_id}: " + ("ending at once" if now else "stopping at the next step"), markup=False)

    def request_checkpoint(self, run_id: str) -> None:
        """Ask the ranks for a checkpoint at their next step."""
        try:
            RunDir.find(run_id).request("checkpoint")
        except (LorawatchError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.notify(f"{run_id}: a checkpoint is saved at the next step", markup=False)

    def adopt(self, run_id: str) -> None:
        """Start a recorder that takes the run over, as `lorawatch adopt` in another terminal would."""
        try:
            with open(RunDir.find(run_id).logs / "recorder.log", "ab") as log:
                subprocess.Popen(
                    own_module("lorawatch", "adopt", run_id), stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, umask=users_umask(),
                )  # fmt: skip
        except (LorawatchError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.notify(f"a new recorder takes {run_id} over", markup=False)

    def action_help(self) -> None:
        from lorawatch.screens.shared.confirm import Help

        if not isinstance(self.screen, Help):
            everywhere = (
                "\n\nEverywhere: 1 Live, 2 Runs, 3 Launch, 4 Compare, ctrl+p palette, ctrl+t light or dark, q quits."
            )
            self.push_screen(Help(getattr(self.screen, "HELP", "").strip() + everywhere))

    def action_light(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        modes = (
            ("live", "What runs now"), ("runs", "The history"), ("launch", "Start a run"),
            ("compare", "Which GPUs, and how many"),
        )  # fmt: skip
        for mode, words in modes:
            yield SystemCommand(f"Go to {mode.title()}", words, lambda mode=mode: self.switch_mode(mode))

    # --- ending

    def _handle_exception(self, error: Exception) -> None:
        """An error after the user has left, in widgets that were still being built, is not shown."""
        if self._debug or not self._exit:
            super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """One clean line, unless tracebacks were asked for: a traceback with its locals does not help a user."""
        error = sys.exc_info()[1] or self._exception
        if self._debug or error is None:
            super()._fatal_error()
            return
        message = f"lorawatch: {type(error).__name__}: {error}\n  this is a defect in lorawatch; --debug shows where"
        self.panic(Text(message))


def run_app(run_id: str | None = None, *, replay_speed: float | None = None, debug: bool = False) -> int:
    """Open the TUI until the user leaves it. Returns the process's exit status."""
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("TEXTUAL_COLOR_SYSTEM", "auto")
    from lorawatch.screens.terminal_driver import TerminalDriver

    app = LorawatchApp(run_id, replay_speed=replay_speed, debug=debug, driver_class=TerminalDriver)
    app.collector = Collector()
    app.run()
    return app.return_code or 0


__all__ = ["Answered", "FrameReady", "LorawatchApp", "run_app"]
