"""What `--record` and `attach` show: a live table on a terminal, plain lines elsewhere, JSON lines for machines.

All figures are those of the frame that the Live screen draws.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TextIO, TypeVar

from lorawatch.run.directory import RunInfo, RunState
from lorawatch.run.live import StepTotal
from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import Evaluation, Event
from lorawatch.system.terminal import raw_stdout
from lorawatch.text.numbers import MISSING, duration, number
from lorawatch.text.run_summary import evaluation_words
from lorawatch.text.sanitize import clean, json_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

    from lorawatch.watching.frame import Frame, Head, Pane
    from lorawatch.watching.watch import Watch

PLAIN_EVERY_S = 5.0
FRAMES_PER_S = 4.0


class Display(Protocol):
    """Shows a run while it lives."""

    def start(self, info: RunInfo) -> None: ...
    def update(self, watch: Watch, state: RunState) -> None: ...
    def event(self, event: Event) -> None: ...
    def stop(self) -> None: ...


_Made = TypeVar("_Made", StepTotal, Evaluation)


class _Unshown(Generic[_Made]):
    """What a view has of steps, or of evaluations, each once."""

    def __init__(self) -> None:
        self._shown = (-1, -1)

    def new(self, made: Iterable[_Made]) -> list[_Made]:
        """Those that were not shown yet, in order."""
        new = [m for m in made if (m.attempt, m.step) > self._shown]
        if new:
            self._shown = (new[-1].attempt, new[-1].step)
        return new


class PlainLines:
    """One line a step, or every 5 s where steps come faster."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._steps = _Unshown[StepTotal]()
        self._evaluations = _Unshown[Evaluation]()
        self._said_at = 0.0
        self._phase = ""
        self._pending: StepTotal | None = None

    def start(self, info: RunInfo) -> None:
        where = f"{info.world_size} × {info.device}" if info.world_size else "own command"
        self._write(f"run {info.run_id}  {info.name}  {where} on {info.host}")

    def update(self, watch: Watch, state: RunState) -> None:
        view = watch.view
        if state.state == "starting" and (head := _head(watch, state)).phase != self._phase:
            self._phase = head.phase
            self._write(head.phase)
        for made in self._evaluations.new(view.evaluations):
            best = "  the lowest so far" if made is view.best else ""
            took = f"  {made.duration_s:.1f} s" if made.duration_s is not None else ""
            self._write(f"evaluation after step {made.step}  loss {number(made.loss, 4)}{best}{took}")
        new = self._steps.new(view.steps)
        if new:
            self._pending = new[-1]
        last = self._pending
        if last is None:
            return
        now = time.monotonic()
        if now - self._said_at < PLAIN_EVERY_S and last.duration_s < PLAIN_EVERY_S and last.step != view.steps_total:
            return
        self._pending = None
        self._said_at = now
        head = _head(watch, state)
        total = f"/{view.steps_total}" if view.steps_total else ""
        parts = [
            f"step {last.step}{total}",
            f"loss {number(last.loss, 4)}",
            f"{number(last.tok_s if head.tok_s is None else head.tok_s)} tok/s",
        ]
        if head.power_w is not None:
            parts.append(f"{head.power_w:,.0f} W")
        if head.eta_s:
            parts.append(f"ETA {duration(head.eta_s)}")
        self._write("  ".join(parts))

    def event(self, event: Event) -> None:
        self._write(f"{event.severity}: {event.message}")

    def stop(self) -> None:
        return

    def _write(self, text: str) -> None:
        _say(self._out, text)


class JsonLines:
    """One JSON object a line: `run`, `step`, `evaluation` and `event` lines. A step has in `gpus` the last readings of each
    GPU that the run uses, by their columns in the history."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._steps = _Unshown[StepTotal]()
        self._evaluations = _Unshown[Evaluation]()
        self._run_id = ""

    def start(self, info: RunInfo) -> None:
        self._run_id = info.run_id
        self._write(
            {
                "type": "run",
                "run_id": info.run_id,
                "name": info.name,
                "world_size": info.world_size,
                "device": info.device,
            }
        )

    def update(self, watch: Watch, state: RunState) -> None:
        view, new = watch.view, self._steps.new(watch.view.steps)
        used = {g.gpu_uuid for g in watch.info.used_gpus} if watch.info else set()
        head = _head(watch, state) if new else None
        power = head.power_w if head and head.figures_of == "recent" else None  # of this moment, or none
        for step in new:
            self._write(
                {
                    "type": "step",
                    "run_id": self._run_id,
                    **{f: getattr(step, f) for f in step.__dataclass_fields__},
                    "tok_s": step.tok_s,
                    "power_w": power,
                    "gpus": [
                        {"gpu_uuid": uuid, **{m.column: m.value(gpu) for m in GPU_METRICS}}
                        for uuid, gpu in sorted(view.gpus.items())
                        if not used or uuid in used
                    ],
                }
            )
        for made in self._evaluations.new(view.evaluations):
            fields = {f: getattr(made, f) for f in made.__struct_fields__ if f != "rank"}
            self._write({"type": "evaluation", "run_id": self._run_id, **fields, "best": made is view.best})

    def event(self, event: Event) -> None:
        self._write(
            {"type": "event", "at": event.at, "kind": event.kind, "severity": event.severity, "message": event.message}
        )

    def stop(self) -> None:
        return

    def _write(self, data: dict[str, object]) -> None:
        _say(self._out, json_text(data))


class LiveTable:
    """A table that stays in place: progress, ETA, loss, and a row a GPU (or CPU rank)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = clean_console() if console is None else console
        self._live: Live | None = None
        self._drawn_at = 0.0

    def start(self, info: RunInfo) -> None:
        from rich.live import Live

        if self._live is None:
            # Standard output and error stay as they are: they clean what is written to them, and rich's stand-ins do not.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()

    def update(self, watch: Watch, state: RunState) -> None:
        now = time.monotonic()
        if self._live is None or now - self._drawn_at < 1 / FRAMES_PER_S:
            return
        self._drawn_at = now
        self._live.update(render(watch.frame(time.time(), state), self._console.width), refresh=True)

    def event(self, event: Event) -> None:
        from rich.text import Text

        mark, style = {"info": ("·", "dim"), "warning": ("!", "yellow"), "error": ("✗", "red")}[event.severity]
        self._console.print(Text(f"{mark} {clean(event.message)}", style))

    def stop(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):  # the terminal may have gone
                self._live.stop()
            self._live = None


def clean_console() -> Console:
    """rich on standard output, whose own control sequences pass, and none of a text."""
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        """Cleans the text of every segment that it draws."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(clean(segment.text), segment.style)

    return CleanConsole(file=raw_stdout(), markup=False)


def render(frame: Frame, width: int) -> RenderableType:
    """One frame of a run as the live table."""
    from rich.console import Group
    from rich.text import Text

    head = frame.head
    if head is None:
        return Text(frame.notice)
    title = Text.assemble(
        (f"{head.run_id} {head.name}", "bold"), "  ", (head.state.upper(), _STATE_STYLE.get(head.state, ""))
    )
    if head.attempt:
        title.append(f"  attempt {head.attempt}", "yellow")
    rows: list[RenderableType] = [title, _progress(frame, head, width)]
    if figures := _figures(head):
        rows.append(Text("   ".join(figures), "bold"))
    rows.append(_devices(frame.panes))
    if frame.host:
        rows.append(Text(f"host {frame.host}", "dim"))
    return Group(*rows)


def _progress(frame: Frame, head: Head, width: int) -> RenderableType:
    """How far the run is, or what it is busy with."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if head.steps_total:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"step {head.step}/{head.steps_total}",
            ProgressBar(head.steps_total, head.step, width=max(min(width - 40, 60), 10)),
            f"{100 * head.step / head.steps_total:.0f}%",
            f"ETA {duration(head.eta_s)}",
        )
        return bar
    if head.step:
        return Text(f"step {head.step}")
    if head.own_command and all(pane.rank is None for pane in frame.panes):
        return Text("no steps: lorawatch.StepCallback in the script's Trainer brings them", "dim")
    return Text(head.phase, "dim")


def _figures(head: Head) -> list[str]:
    from lorawatch.watching.words import power_words, tok_s_words

    figures = []
    if head.step:
        figures.append(tok_s_words(head))
        if head.tok_per_j is not None:
            figures.append(f"{head.tok_per_j:.1f} tok/J")
        figures.append(f"loss {number(head.loss, 4)}")
        if head.eval_step is not None:
            words = evaluation_words(head.eval_loss, head.eval_step, head.best_eval_loss, head.best_eval_step)
            figures.append(f"eval loss {words}")
        if head.grad_norm is not None:
            figures.append(f"grad norm {head.grad_norm:.3f}")
    if head.power_w:
        figures.append(power_words(head))
    return figures


_STATE_STYLE = {"running": "green", "starting": "cyan", "stopping": "yellow", "completed": "green", "failed": "red"}


def _devices(panes: tuple[Pane, ...]) -> RenderableType:
    """A row a GPU that the run uses; of an own command that names none, of every GPU; else a row a rank on the CPU."""
    from rich import box
    from rich.table import Table

    gpus = [pane for pane in panes if "power_w" in pane.values]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    if gpus:
        absent = [m for m in GPU_METRICS if m.optional and all(pane.values.get(m.name) is None for pane in gpus)]
        shown = [m for m in GPU_METRICS if m.label and m not in absent]
        for name in ("GPU", "tok/s", *(m.label for m in shown)):
            table.add_column(name, justify="left" if name == "GPU" else "right", no_wrap=True)
        for pane in [pane for pane in gpus if pane.used] or gpus:
            now, limits = pane.values, pane.limits
            table.add_row(
                pane.title.replace(" · ", " ", 1)
                + (f" stale {pane.stale_s:.0f} s" if pane.stale_s is not None else ""),
                number(now.get("tok_s")),
                *(m.figure(now.get(m.name), m.text(limits[m.name]) if m.name in limits else "") for m in shown),
            )
        return table
    for name in ("rank", "tok/s", "step", "loss", "data wait"):
        table.add_column(name, justify="right", no_wrap=True)
    for pane in panes:
        table.add_row(
            f"{pane.rank} cpu",
            number(pane.values.get("tok_s")),
            str(pane.step) if pane.step is not None else pane.note or MISSING,
            number(pane.values.get("loss"), 4),
            number(pane.values.get("data_wait_ms"), 1, "ms"),
        )
    return table


def _head(watch: Watch, state: RunState) -> Head:
    """The run as a whole, now.

    Raises:
        ValueError: The watch is of a machine without a run.
    """
    head = watch.head(time.time(), state)
    if head is None:
        raise ValueError("a display shows a run")
    return head


def _say(out: TextIO, text: str) -> None:
    """Print a line; a terminal that has gone away, or a full disk behind a redirection, must not end a recorder."""
    try:
        out.write(clean(text) + "\n")
        out.flush()
    except (OSError, ValueError):
        return
