"""What `--record` and `attach` show: a live table on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from lorawatch.run.directory import RunInfo, RunState
from lorawatch.run.live import LiveView, StepTotal
from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import Evaluation, Event
from lorawatch.system.terminal import raw_stdout
from lorawatch.text.numbers import duration, gib, number
from lorawatch.text.run_summary import evaluation_words
from lorawatch.text.sanitize import clean, json_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

PLAIN_EVERY_S = 5.0
FRAMES_PER_S = 4.0


class Display(Protocol):
    """Shows a run while it lives."""

    def start(self, info: RunInfo) -> None: ...
    def update(self, info: RunInfo, state: RunState, view: LiveView) -> None: ...
    def event(self, event: Event) -> None: ...
    def stop(self) -> None: ...


class _Steps:
    """The steps of a view that were not shown yet, each once."""

    def __init__(self) -> None:
        self._shown = (-1, -1)

    def new(self, view: LiveView) -> list[StepTotal]:
        steps = [s for s in view.steps if (s.attempt, s.step) > self._shown]
        if steps:
            self._shown = (steps[-1].attempt, steps[-1].step)
        return steps


class _Evaluations:
    """The evaluations of a view that were not shown yet, each once."""

    def __init__(self) -> None:
        self._shown = (-1, -1)

    def new(self, view: LiveView) -> list[Evaluation]:
        made = [e for e in view.evaluations if (e.attempt, e.step) > self._shown]
        if made:
            self._shown = (made[-1].attempt, made[-1].step)
        return made


class PlainLines:
    """One line a step, or every 5 s where steps come faster."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._steps = _Steps()
        self._evaluations = _Evaluations()
        self._said_at = 0.0
        self._phase = ""
        self._pending: StepTotal | None = None

    def start(self, info: RunInfo) -> None:
        where = f"{info.world_size} × {info.device}" if info.world_size else "own command"
        self._write(f"run {info.run_id}  {info.name}  {where} on {info.host}")

    def update(self, info: RunInfo, state: RunState, view: LiveView) -> None:
        phase = _phase(view)
        if phase and phase != self._phase and state.state == "starting":
            self._phase = phase
            self._write(phase)
        for made in self._evaluations.new(view):
            best = "  the lowest so far" if made is view.best else ""
            took = f"  {made.duration_s:.1f} s" if made.duration_s is not None else ""
            self._write(f"evaluation after step {made.step}  loss {number(made.loss, 4)}{best}{took}")
        new = self._steps.new(view)
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
        total = f"/{view.steps_total}" if view.steps_total else ""
        parts = [
            f"step {last.step}{total}",
            f"loss {number(last.loss, 4)}",
            f"{number(view.tok_s or last.tok_s)} tok/s",
        ]
        power = view.power_w(_used(info))
        if power is not None:
            parts.append(f"{power:,.0f} W")
        if view.eta_s:
            parts.append(f"ETA {duration(view.eta_s)}")
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
        self._steps = _Steps()
        self._evaluations = _Evaluations()

    def start(self, info: RunInfo) -> None:
        self._write(
            {
                "type": "run",
                "run_id": info.run_id,
                "name": info.name,
                "world_size": info.world_size,
                "device": info.device,
            }
        )

    def update(self, info: RunInfo, state: RunState, view: LiveView) -> None:
        used = _used(info)
        for step in self._steps.new(view):
            self._write(
                {
                    "type": "step",
                    "run_id": info.run_id,
                    **{f: getattr(step, f) for f in step.__dataclass_fields__},
                    "tok_s": step.tok_s,
                    "power_w": view.power_w(used),
                    "gpus": [
                        {"gpu_uuid": uuid, **{m.column: m.value(gpu) for m in GPU_METRICS}}
                        for uuid, gpu in sorted(view.gpus.items())
                        if used is None or uuid in used
                    ],
                }
            )
        for made in self._evaluations.new(view):
            fields = {f: getattr(made, f) for f in made.__struct_fields__ if f != "rank"}
            self._write({"type": "evaluation", "run_id": info.run_id, **fields, "best": made is view.best})

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

    def update(self, info: RunInfo, state: RunState, view: LiveView) -> None:
        now = time.monotonic()
        if self._live is None or now - self._drawn_at < 1 / FRAMES_PER_S:
            return
        self._drawn_at = now
        self._live.update(render(info, state, view, self._console.width), refresh=True)

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


def render(info: RunInfo, state: RunState, view: LiveView, width: int) -> RenderableType:
    """One frame of the live table."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble(
        (f"{info.run_id} {clean(info.name)}", "bold"), "  ", (state.state.upper(), _STATE_STYLE.get(state.state, ""))
    )
    if view.attempt:
        head.append(f"  attempt {view.attempt}", "yellow")
    rows: list[RenderableType] = [head]
    if view.steps_total:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"step {view.step}/{view.steps_total}",
            ProgressBar(view.steps_total, view.step, width=max(min(width - 40, 60), 10)),
            f"{100 * view.step / view.steps_total:.0f}%",
            f"ETA {duration(view.eta_s)}",
        )
        rows.append(bar)
    elif view.steps:
        rows.append(Text(f"step {view.step}"))
    elif info.own_command and not view.ranks:
        rows.append(Text("no steps: lorawatch.StepCallback in the script's Trainer brings them", "dim"))
    else:
        rows.append(Text(_phase(view) or "starting", "dim"))
    power = view.power_w(_used(info))
    figures = []
    if view.steps:
        tok_s = view.tok_s
        figures.append(f"{number(tok_s)} tok/s")
        if power and tok_s:
            figures.append(f"{tok_s / power:.1f} tok/J")
        figures.append(f"loss {number(view.loss, 4)}")
        if view.evaluations:
            last, best = view.evaluations[-1], view.best
            words = evaluation_words(last.loss, last.step, best.loss if best else None, best.step if best else None)
            figures.append(f"eval loss {words}")
        if view.steps[-1].grad_norm is not None:
            figures.append(f"grad norm {view.steps[-1].grad_norm:.3f}")
    if power:
        figures.append(f"{power:,.0f} W")
    if figures:
        rows.append(Text("   ".join(figures), "bold"))
    rows.append(_devices(info, view))
    host = view.host
    if host:
        memory = f"{gib(host.memory_used_bytes)} of {gib(host.memory_total_bytes)}"
        workers = f"   workers {gib(host.workers_rss_bytes)}" if host.workers_rss_bytes else ""
        rows.append(Text(f"host CPU {number(host.cpu_pct, 0, '%')}   memory {memory}{workers}", "dim"))
    return Group(*rows)


_STATE_STYLE = {"running": "green", "starting": "cyan", "stopping": "yellow", "completed": "green", "failed": "red"}


def _devices(info: RunInfo, view: LiveView) -> RenderableType:
    from rich import box
    from rich.table import Table

    gpus = [g for g in info.gpus if g.used] or (info.gpus if info.own_command else [])
    by_gpu = {r.started.gpu_uuid: r for r in view.ranks.values() if r.started and r.started.gpu_uuid}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    if gpus:
        read = {g.gpu_uuid: view.gpus.get(g.gpu_uuid) for g in gpus}
        absent = [m for m in GPU_METRICS if m.optional and all(m.value(r) is None for r in read.values())]
        shown = [m for m in GPU_METRICS if m.label and m not in absent]
        for name in ("GPU", "tok/s", *(m.label for m in shown)):
            table.add_column(name, justify="left" if name == "GPU" else "right", no_wrap=True)
        for gpu in gpus:
            now = read[gpu.gpu_uuid]
            rank = by_gpu.get(gpu.gpu_uuid)
            limits = {
                "power_w": (now.power_limit_w if now else None) or gpu.power_limit_w,
                "memory_bytes": gpu.memory_total_bytes,
            }
            stale = now is not None and now.sampled_at and time.time() - now.sampled_at > 3
            table.add_row(
                f"{gpu.gpu_index} {clean(gpu.sku).removeprefix('NVIDIA ')}"
                + (f" stale {time.time() - now.sampled_at:.0f} s" if stale and now else ""),
                number(rank.tok_s if rank else None),
                *(m.figure(m.value(now), m.text(limits[m.name]) if m.name in limits else "") for m in shown),
            )
        return table
    for name in ("rank", "tok/s", "step", "loss", "data wait"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank in sorted(view.ranks.values(), key=lambda r: r.rank):
        last = rank.last
        table.add_row(
            f"{rank.rank} cpu",
            number(rank.tok_s),
            str(last.step) if last else clean(rank.phase),
            number(last.loss if last else None, 4),
            number(last.data_wait_s * 1000 if last and last.data_wait_s is not None else None, 1, "ms"),
        )
    return table


def _phase(view: LiveView) -> str:
    ranks: Sequence[str] = [
        clean(f"{r.phase}{': ' + r.phase_detail if r.phase_detail else ''}") for r in view.ranks.values()
    ]
    return ranks[0] if ranks else "starting the workers"


def _used(info: RunInfo) -> set[str] | None:
    used = {g.gpu_uuid for g in info.gpus if g.used}
    return used or None


def _say(out: TextIO, text: str) -> None:
    """Print a line; a terminal that has gone away, or a full disk behind a redirection, must not end a recorder."""
    try:
        out.write(clean(text) + "\n")
        out.flush()
    except (OSError, ValueError):
        return
