"""Where the run goes: this machine's GPUs with the free memory of each, or a number of ranks on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.segment import Segment
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.strip import Strip
from textual.widgets import SelectionList, Static

from lorawatch.analysis.staleness import stale_age
from lorawatch.launch.placement import Placement, place
from lorawatch.recipe.devices import DeviceRequest
from lorawatch.run.directory import Gpu
from lorawatch.screens.launch.cycle import Cycle
from lorawatch.screens.shared.background import Answered
from lorawatch.system.processes import usable_cores
from lorawatch.text.numbers import MISSING, number
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.screens.shared.services import AppServices
    from lorawatch.telemetry.snapshot import Snapshot

BUSY_BYTES = 1 << 30  # a driver and a desktop take less
BUSY_PCT = 10.0
MOST_RANKS = 64
LOOK_S = 1.0


@dataclass(frozen=True)
class GpuUse:
    """How much of a GPU is in use now; a missing reading is None.

    Attributes:
        by: Who uses it, as text; empty where that is not known.
        stale_s: Age of the readings where they are too old to rely on.
    """

    used_bytes: int | None = None
    utilization_pct: float | None = None
    by: str = ""
    lost: bool = False
    stale_s: float | None = None

    @property
    def busy(self) -> bool:
        """Whether another program computes there."""
        return bool(self.by) or (self.used_bytes or 0) >= BUSY_BYTES or (self.utilization_pct or 0.0) >= BUSY_PCT


def gpu_words(gpu: Gpu, use: GpuUse | None, sku_width: int) -> tuple[str, str, str]:
    """A line of the list: index and SKU, what is free, and a warning where there is one."""
    name = f"{gpu.gpu_index:>2} {clean(gpu.sku).removeprefix('NVIDIA '):<{sku_width}}"
    total = gpu.memory_total_bytes
    if use is None:
        return name, f" {MISSING:>5} of {_gib(total):>5} GiB free", ""
    if use.lost:
        return name, "", "✗ lost: the driver no longer reaches it"
    free = None if total is None or use.used_bytes is None else max(total - use.used_bytes, 0)
    figures = f" {_gib(free):>5} of {_gib(total):>5} GiB free  {number(use.utilization_pct):>3}%"
    if use.stale_s is not None:
        return name, figures, f"? stale {use.stale_s:.0f} s"
    if not use.busy:
        return name, figures, ""
    by = f" by {use.by}" if use.by else ""
    return name, figures, f"! busy: {_gib(use.used_bytes)} GiB used{by}"


def _gib(value: float | None) -> str:
    return MISSING if value is None else f"{value / 2**30:.1f}"


class Ticks(SelectionList[int]):
    """A selection list that shows ticks by a glyph, not by colour alone."""

    def render_line(self, y: int) -> Strip:
        segments = list(super().render_line(y))
        index = self.scroll_offset.y + y
        if index < self.option_count and len(segments) > 1:
            chosen = self.get_option_at_index(index).value in self.selected
            segments[1] = Segment("✓" if chosen else " ", segments[1].style)
        return Strip(segments)


class GpuList(Vertical):
    """A tick a GPU; without a GPU, how many ranks on the CPU.

    Messages:
        Chosen: The user chose; `gpus` as a recipe's `launch.gpus` takes it.
        Ready: Posted once, when the choices are known.
    """

    DEFAULT_CSS = """
    GpuList { height: auto; }
    GpuList Ticks { height: auto; max-height: 10; border: round $foreground 40%; border-title-color: $primary;
        padding: 0 1; background: $background; scrollbar-size-vertical: 1; }
    GpuList Ticks:focus { border: round $primary; }
    .-low GpuList Ticks, .-low GpuList Ticks:focus { max-height: 4; border: none; }
    GpuList Horizontal { height: 1; padding: 0 1; }
    GpuList Horizontal Static { width: auto; }
    GpuList .muted { color: $text-muted; width: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("a", "all", "All GPUs", show=False)]

    class Chosen(Message):
        """The value for the recipe's `launch.gpus`."""

        def __init__(self, gpus: str | list[int]) -> None:
            super().__init__()
            self.gpus = gpus

    class Ready(Message):
        """The driver has answered, or there is none: what can be chosen is known."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.ready = False
        self.gpus: tuple[Gpu, ...] = ()
        self._use: Mapping[str, GpuUse] = {}
        self._sku_width = 0

    @property
    def services(self) -> AppServices:
        """The app's shared services."""
        return cast("AppServices", self.app)

    def compose(self) -> ComposeResult:
        yield Static(" asking the GPU driver …", classes="muted")

    async def on_mount(self) -> None:
        self.set_interval(LOOK_S, self._look)
        await self._look()

    async def _look(self) -> None:
        if not self.ready and self.services.machine_words != self.services.host:  # it is known what machine this is
            self.ready = True
            await self._meet(self.services.machine)
        now = self.services.watcher.machine_now()
        if self.gpus and now is not None and self.screen.is_current:
            self.services.background.ask(self, "use", lambda: read_use(now))

    async def _meet(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        self._sku_width = max((len(clean(g.sku).removeprefix("NVIDIA ")) for g in gpus), default=0)
        await self.remove_children()
        if gpus:
            listing = Ticks(*((self._line(g), g.gpu_index) for g in gpus))
            listing.border_title = "GPUs"
            await self.mount(listing)
        else:
            cores = usable_cores()
            ranks = [str(n) for n in range(1, max(min(cores, MOST_RANKS), 2) + 1)]
            words = Static(Text(f"  no GPU here · {cores} CPU cores"), classes="muted")
            await self.mount(Horizontal(Static(Text("CPU ranks ")), Cycle(ranks, "2"), words))
        self.post_message(self.Ready())

    def on_answered(self, message: Answered) -> None:
        if message.error is None:
            self.show_use(message.value)

    def show_use(self, use: Mapping[str, GpuUse]) -> None:
        """Show what is in use on each GPU, by UUID."""
        if not self.gpus or use == self._use:
            return
        before, self._use = self._use, use
        listing = self.query_one(Ticks)
        for index, gpu in enumerate(self.gpus):
            if before.get(gpu.gpu_uuid) != use.get(gpu.gpu_uuid):
                listing.replace_option_prompt_at_index(index, self._line(gpu))
        listing.refresh()

    def show_chosen(self, placement: Placement | None) -> None:
        """Tick where the run goes; None where the recipe's value is not valid; the ticks then stay as they are."""
        if placement is None or not self.ready or len(self.children) == 0:
            return
        if not self.gpus:
            self.query_one(Cycle).show(str(placement.world_size))
            return
        listing = self.query_one(Ticks)
        wanted = {g.gpu_index for g in self.gpus if g.gpu_uuid in placement.gpu_uuids}
        if set(listing.selected) != wanted:
            with listing.prevent(SelectionList.SelectedChanged):
                listing.deselect_all()
                for index in wanted:
                    listing.select(index)
        ranks = placement.world_size
        listing.border_title = "GPUs" if placement.device == "cuda" else f"GPUs: none, {ranks} ranks on the CPU"

    def _line(self, gpu: Gpu) -> Text:
        name, figures, word = gpu_words(gpu, self._use.get(gpu.gpu_uuid), self._sku_width)
        line = Text(f"{name}{figures}", no_wrap=True, overflow="ellipsis")
        return line.append(f"  {word}", "bold") if word else line

    # --- keys

    def on_selection_list_selected_changed(self, event: SelectionList.SelectedChanged[int]) -> None:
        event.stop()
        chosen = sorted(event.selection_list.selected)
        uuids = {g.gpu_uuid for g in self.gpus if g.gpu_index in chosen}
        everything = uuids == set(place(DeviceRequest(), self.gpus).gpu_uuids)  # the environment may leave some out
        self.post_message(self.Chosen("all" if everything else chosen))

    def on_cycle_changed(self, event: Cycle.Changed) -> None:
        event.stop()
        self.post_message(self.Chosen(f"cpu:{event.value}"))

    def action_all(self) -> None:
        if self.gpus:
            self.query_one(Ticks).select_all()


def read_use(snapshot: Snapshot) -> dict[str, GpuUse]:
    """What is in use on each GPU, and by whom: a live run's id, or a process's name and user. Milliseconds."""
    runs = _runs_by_gpu() if snapshot.gpus else {}
    by_uuid = {}
    for now in snapshot.gpus:
        uuid = now.gpu.gpu_uuid
        stale = stale_age(now.fast_age_s)
        by = f"run {runs[uuid]}" if uuid in runs else _processes([p.pid for p in now.processes])
        by_uuid[uuid] = GpuUse(now.values.memory_used_bytes, now.values.utilization_pct, by, now.lost, stale)
    return by_uuid


def _runs_by_gpu() -> dict[str, str]:
    import msgspec

    from lorawatch.run.directory import RunDir
    from lorawatch.system import home
    from lorawatch.watching.watcher import live_runs

    runs: dict[str, str] = {}
    for run_id in live_runs():
        try:
            info = RunDir(home.runs_folder() / run_id).info()
        except (OSError, msgspec.MsgspecError):
            continue
        runs |= {g.gpu_uuid: run_id for g in info.used_gpus}
    return runs


def _processes(pids: Sequence[int]) -> str:
    """`python (ann) and 2 more`; inside a container, where the driver's pids are other processes' here, `3 processes`."""
    if not pids:
        return ""
    import psutil

    from lorawatch.system.processes import in_initial_namespace

    more = f" and {len(pids) - 1} more" if len(pids) > 1 else ""
    if in_initial_namespace():
        with contextlib.suppress(psutil.Error, KeyError):
            process = psutil.Process(pids[0])
            return clean(f"{process.name()} ({process.username()})") + more
    return f"{len(pids)} process" + ("es" if len(pids) > 1 else "")
