"""Live: the current run, GPU by GPU; a replay of an ended run; or, without a run, this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from lorawatch.run.directory import ENDED
from lorawatch.screens.live.panes import PaneGrid
from lorawatch.screens.live.run_head import RunHead
from lorawatch.screens.shared.base import BaseScreen
from lorawatch.text.sanitize import clean
from lorawatch.watching.frame import Frame

if TYPE_CHECKING:
    from textual.widgets import Log, RichLog

    from lorawatch.watching.replay import Replay

_REPLAY_ACTIONS = {"pause", "seek", "replay_step", "faster", "leave_replay"}
_MARKS = {"info": ("·", "dim"), "warning": ("!", "bold"), "error": ("✗", "bold")}


class LiveScreen(BaseScreen):
    """The live (or replayed) run, with a pane for each GPU, its events and its log."""

    MODE = "live"
    HELP = """\
A pane for each GPU (or CPU rank) of the live run. Without a run the panes show this machine.

The curves span the whole run (of a long loading the end); each column is solid up to the lowest value in its time and
dotted from there to the highest. The dotted line above a curve is its limit: the power limit, or the card's memory.
▲cap says how often the power limit held the clocks back. eval is the loss of the last evaluation, with the lowest so far.

[ and ] go through the runs that live at once, and this machine. s stops the run at its next step and saves; twice
ends it at once. c saves a checkpoint and goes on. Leaving stops nothing.

In a replay: space pauses, , and . step, left and right seek, - and + change the speed, escape leaves it.

Alerts: ◄ straggler (a rank's step takes over 1.25 × the fastest's), ▼ throttled, ■ VRAM full (3% left), ✗ NaN loss,
? stale readings, … no step for longer than usual, ↻ restarted, ✗ LOST (the recorder is gone: a adopts the run)."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "stop", "Stop"),
        Binding("c", "checkpoint", "Checkpoint"),
        Binding("a", "adopt", "Adopt", show=False),
        Binding("l", "log", "Log"),
        Binding("left_square_bracket", "neighbour(False)", "Run", key_display="[", show=False),
        Binding("right_square_bracket", "neighbour(True)", "Next run", key_display="]"),
        Binding("space", "pause", "Pause"),
        Binding("left", "seek(False)", "Back"),
        Binding("right", "seek(True)", "Forth"),
        Binding("comma", "replay_step(False)", "Step back", show=False),
        Binding("full_stop", "replay_step(True)", "Step", show=False),
        Binding("minus", "faster(False)", "Slower"),
        Binding("plus,equals_sign", "faster(True)", "Faster"),
        Binding("escape", "leave_replay", "Leave"),
    ]
    CSS = """
    LiveScreen #below { height: 8; }
    LiveScreen.-low #below { height: 5; }
    LiveScreen #events, LiveScreen #log { border: round $foreground 40%; border-title-color: $primary; padding: 0 1;
        scrollbar-size: 0 1; scrollbar-background: $background; scrollbar-color: $foreground 30%;
        background: $background; }
    LiveScreen #events { width: 1fr; }
    LiveScreen #log { width: 1fr; display: none; }
    LiveScreen.-wide #log { display: block; }
    LiveScreen.show-log #log { display: block; }
    LiveScreen.replaying #log { display: none; }
    LiveScreen.-narrow.show-log #events, LiveScreen.-medium.show-log #events { display: none; }
    LiveScreen.-narrow #below { height: 4; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.frame: Frame | None = None
        self._logs: tuple[RichLog, Log] | None = None
        self._events_shown: tuple[str, int, float] = ("", 0, 0.0)
        self._log_shown: tuple[str, tuple[str, ...]] = ("", ())
        self._asked_stop: tuple[str, float] = ("", 0.0)

    def compose_body(self) -> ComposeResult:
        yield RunHead(id="head")
        yield PaneGrid(id="panes")
        yield Horizontal(id="below")

    async def _fill_below(self) -> None:
        """Events and log come after the first frame: they take longer to make than everything else."""
        if not self.is_attached:  # the user may have left already
            return
        from textual.widgets import Log, RichLog

        events = RichLog(id="events", max_lines=300, wrap=True, markup=False)
        log = Log(id="log", max_lines=500)
        for widget, title in ((events, "events"), (log, "log")):
            widget.border_title = title
            widget.can_focus = False
        await self.query_one("#below").mount(events, log)
        self._logs = events, log
        if self.frame is not None:
            self.show(self.frame)

    def on_mount(self) -> None:
        self.call_after_refresh(self._fill_below)

    def on_screen_resume(self) -> None:
        if self.services.last_frame is not None:
            self.show(self.services.last_frame)

    def show(self, frame: Frame) -> None:
        """Draw this frame."""
        before = self._in_replay(), self._may_stop(), self._own_command()
        self.frame = frame
        if before != (self._in_replay(), self._may_stop(), self._own_command()):
            self.set_class(frame.replay is not None, "replaying")
            self.refresh_bindings()
        with self.app.batch_update():
            self.query_one(RunHead).show(frame)
            self.query_one(PaneGrid).show(frame)
            if self._logs is not None:
                self._show_events(frame, self._logs[0])
                self._show_log(frame, self._logs[1])

    def _show_events(self, frame: Frame, widget: RichLog) -> None:
        events = frame.events
        run = frame.head.run_id if frame.head else ""
        last = events[-1].at if events else 0.0
        shown = self._events_shown
        if (run, len(events), last) == shown:
            return
        new = [e for e in events if e.at > shown[2]] if run == shown[0] and len(events) > shown[1] else None
        if new is None:
            widget.clear()
            new = list(events)
        self._events_shown = (run, len(events), last)
        for event in new:
            mark, style = _MARKS[event.severity]
            when = time.strftime("%H:%M:%S", time.localtime(event.at))
            words = " ".join(clean(event.message).split())[:500]
            widget.write(Text(f"{when} {mark} {words}", style))

    def _show_log(self, frame: Frame, widget: Log) -> None:
        if frame.log == self._log_shown:
            return
        before, self._log_shown = self._log_shown, frame.log
        title, lines = frame.log
        widget.border_title = title or "log"
        if title == before[0] and before[1] and lines[: len(before[1])] == before[1]:
            widget.write_lines(lines[len(before[1]) :])
        else:
            widget.clear()
            widget.write_lines(lines)

    # --- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A replay and a live run have different keys; the footer names those that have an effect."""
        if action in _REPLAY_ACTIONS:
            return self._in_replay()
        if action == "stop":
            return self._may_stop()
        if action == "checkpoint":
            return self._may_stop() and not self._own_command()
        if action in ("adopt", "log", "neighbour"):
            return not self._in_replay()
        return True

    def _own_command(self) -> bool:
        """Whether the run is a user's own command, which saves nothing on request."""
        return self.frame is not None and self.frame.head is not None and self.frame.head.own_command

    def _may_stop(self) -> bool:
        head = self.frame.head if self.frame else None
        return head is not None and head.state not in ENDED and not self._in_replay()

    def action_neighbour(self, forth: bool) -> None:
        self.services.watcher.neighbour(forth)

    def action_log(self) -> None:
        if self.has_class("-wide") or self.has_class("show-log"):
            ranks = sum(p.rank is not None for p in self.frame.panes) if self.frame else 0
            if ranks > 1:
                self.services.watcher.next_log()
                return
        self.toggle_class("show-log")

    def action_stop(self) -> None:
        head = self.frame.head if self.frame else None
        if head is None:
            return
        asked_run, asked_at = self._asked_stop
        again = head.state == "stopping" or (asked_run == head.run_id and asked_at)
        question = (
            f"End {head.run_id} at once, without a save?" if again else f"Stop {head.run_id} at its next step and save?"
        )
        from lorawatch.screens.shared.confirm import Confirm

        def answered(yes: bool | None) -> None:
            if yes:
                self._asked_stop = (head.run_id, time.time())
                self.services.request_stop(head.run_id, now=bool(again))

        self.app.push_screen(Confirm(question), answered)

    def action_checkpoint(self) -> None:
        if self.frame is not None and self.frame.head is not None:
            self.services.request_checkpoint(self.frame.head.run_id)

    def action_adopt(self) -> None:
        head = self.frame.head if self.frame else None
        if head is None or head.state != "lost" or head.recorder_alive:
            self.notify("this run has its recorder, or has ended: there is nothing to adopt", severity="warning")
            return
        self.services.adopt(head.run_id)

    def _in_replay(self) -> bool:
        return self.frame is not None and self.frame.replay is not None

    def action_pause(self) -> None:
        def toggle(replay: Replay) -> None:
            if replay.paused and replay.position >= replay.end:
                replay.seek(replay.begin)
            replay.paused = not replay.paused

        self.services.watcher.control(toggle)

    def action_replay_step(self, forth: bool) -> None:
        self.services.watcher.control(lambda replay: replay.step(forth))

    def action_seek(self, forth: bool) -> None:
        self.services.watcher.control(
            lambda replay: replay.seek(replay.position + (1 if forth else -1) * (replay.end - replay.begin) / 20)
        )

    def action_faster(self, more: bool) -> None:
        self.services.watcher.control(lambda replay: replay.faster(more))

    def action_leave_replay(self) -> None:
        if self._in_replay():
            self.services.watcher.watch(None)
