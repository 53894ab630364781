"""The Compare screen in tests: runs to compare, and the ways to read and drive it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from history import T0, end, make_run, step, write
from screen_driver import footer, until
from textual.pilot import Pilot
from textual.widgets import Input

from lorawatch.comparing.rows import Comparison
from lorawatch.recipe import loading
from lorawatch.run.directory import Gpu
from lorawatch.run.records import GpuSample, RankStarted
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.compare.model import Picture
from lorawatch.screens.compare.screen import CompareScreen
from lorawatch.screens.shared.figure_table import FigureTable, Line
from lorawatch.storage.ingest import finish_run

EXXACT = loading.load("exxact-8b").to_dict()
H100 = "NVIDIA H100 80GB HBM3"
PUBLISHED = 8


def trained(
    name: str = "exxact-8b", gpus: int = 1, step_s: float = 0.2, *, steps: int = 30, watts: float | None = 400.0,
    coupling: str = "ddp", state: str = "completed", sku: str = H100, batch: int = 2, tags: Iterable[str] = (),
) -> str:  # fmt: skip
    """Record a run of the published work: 1,024 tokens a step and GPU at batch 2, steps of about `step_s` seconds.

    Returns the run's id.
    """
    train, launch = {**EXXACT["train"], "batch_size_per_gpu": batch}, {**EXXACT["launch"], "strategy": coupling}
    cards = [
        Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku=sku, used=True, power_limit_w=700.0) for i in range(gpus)
    ]
    run = make_run(
        name, ranks=gpus, gpus=cards, recipe={**EXXACT, "train": train, "launch": launch}, tags=list(tags),
        torch_version="2.13", driver_version="580",
    )  # fmt: skip
    for rank in range(gpus):
        at, lines = T0, []
        for number in range(1, steps + 1):
            took = step_s * (1 + 0.01 * (number % 3))
            at += took
            lines.append(step(number, rank, ended_at=at, duration_s=took, tokens=512 * batch))
        begun = RankStarted(
            at=T0, attempt=0, rank=rank, local_rank=rank, world_size=gpus, host="h", pid=1, device="cuda",
            gpu_uuid=f"GPU-{rank}", flops_per_token=30e9, dtype="bfloat16",
        )  # fmt: skip
        write(run.rank_journal(rank), begun, *lines)
    if watts is not None:
        ticks = range(int(5 * (step_s * steps + 4)))
        write(
            run.host_journal("h"),
            *(
                GpuSample(
                    sampled_at=T0 - 1 + 0.2 * n, gpu_uuid=card.gpu_uuid, power_w=watts, energy_j=1e6 + 0.2 * n * watts
                )
                for n in ticks
                for card in cards
            ),
        )
    end(run, state)
    finish_run(run)
    return run.run_id


async def opened(pilot: Pilot[Any], app: LorawatchApp, *, filled: bool = True) -> CompareScreen:
    """Open the screen: once its table is there and, if `filled`, also its fields and footer."""
    await pilot.press("4")
    await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.screen.picture != Picture())
    screen = cast("CompareScreen", app.screen)
    if filled:
        await until(pilot, lambda: screen._fields is not None and screen._fields.is_mounted and "Choose" in footer(app))
    return screen


def table(screen: CompareScreen) -> FigureTable:
    """The table of configurations."""
    return screen.query_one("#table", FigureTable)


def of(screen: CompareScreen) -> Comparison:
    """What the screen compares; fails where it compares nothing."""
    assert screen.picture.comparison is not None
    return screen.picture.comparison


def labels(screen: CompareScreen) -> list[str]:
    """The labels of the compared configurations, in the screen's order."""
    return [r.configuration.label for r in of(screen).rows]


def line(screen: CompareScreen, label: str, kind: str = "measured") -> Line:
    """The only line of a label and provenance."""
    (only,) = (x for x in table(screen).table.lines if x.label == label and x.kind == kind)
    return only


def cell(screen: CompareScreen, label: str, heading: str, kind: str = "measured") -> str:
    """The text of a line below a heading."""
    return line(screen, label, kind).cells[table(screen).table.headings.index(heading) - 1]


async def go_to(pilot: Pilot[Any], screen: CompareScreen, label: str, kind: str = "published") -> None:
    """Move the cursor to this line with keys."""
    wanted = table(screen).table.lines.index(line(screen, label, kind))
    await pilot.press("home", *["down"] * wanted)
    assert table(screen).current == line(screen, label, kind)


async def type_into(pilot: Pilot[Any], screen: CompareScreen, name: str, text: str) -> None:
    """Replace the text of a field."""
    await pilot.press("escape", "t")
    assert pilot.app.focused is screen.query_one("#tokens")
    box = screen.query_one(f"#{name}", Input)
    box.value = ""
    box.focus()
    await pilot.press(*text)


def field_message(screen: CompareScreen) -> str:
    """The line below the fields."""
    return str(screen.query_one("#words").render())  # type: ignore[attr-defined]
