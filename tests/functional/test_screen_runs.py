"""The list of runs, driven by keys: columns, order, filter, and what happens while it is looked at."""

from __future__ import annotations

from typing import Any

import pytest
from history import T0, a_whole_run, end, make_run, step, write
from screen_driver import drive, screen_text, until
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from lorawatch.errors import HistoryBusy
from lorawatch.run.directory import RunState
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.runs import screen as runs_screen
from lorawatch.screens.runs.rows import COLUMNS, widths
from lorawatch.screens.runs.screen import RunsScreen
from lorawatch.storage import queries
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.system.processes import ProcessId

_RUN = """INSERT INTO runs (run_id, name, state, failure, world_size, device, started_at, ended_at, step, tags)
SELECT {id}, {name}, {state}, {failure}, 1, 'cuda', now(), now() + to_seconds({seconds}), {steps}, {tags}
FROM range({count}) t(n)"""


def insert(count: int = 1, **values: str) -> None:
    """Rows of `runs`, each value an SQL expression of n."""
    default = {"id": "'r' || n", "name": "'plain'", "state": "'completed'", "failure": "NULL", "seconds": "60", "steps": "10",
               "tags": "[]"}  # fmt: skip
    with writing() as connection:
        connection.execute(_RUN.format(count=count, **{**default, **values}))


def summary(run_id: str, **values: Any) -> None:
    names = ", ".join(values)
    with writing() as connection:
        connection.execute(
            f"INSERT INTO run_summary (run_id, {names}) VALUES (?, {', '.join('?' * len(values))})",
            [run_id, *values.values()],
        )


async def opened(pilot: Pilot[Any], app: LorawatchApp, rows: int) -> DataTable[Any]:
    await pilot.press("2")
    await until(pilot, lambda: app.screen.query(DataTable) and app.screen.query_one(DataTable).row_count == rows)
    return app.screen.query_one(DataTable)


def order(table: DataTable[Any]) -> list[str]:
    return [str(table.get_row_at(i)[0]) for i in range(table.row_count)]


def said(app: LorawatchApp) -> str:
    return str(app.screen.query_one("#notice", Static).render())


def three() -> None:
    for number, (tok_s, loss, sku, gpus) in enumerate(
        (
            (900.0, 2.5, "NVIDIA A100", 8),
            (1200.0, 0.5, "NVIDIA H100 80GB HBM3", 1),
            (None, float("nan"), "NVIDIA A100", 2),
        )
    ):
        insert(id=f"'r{number}'", name=f"'{'bac'[number]}-recipe'", seconds=str(60 * (3 - number)), tags=f"['t{9 - number}']",
               state="'failed'" if number == 2 else "'completed'", failure="'cuda_oom'" if number == 2 else "NULL",
               steps=str(number * 7))  # fmt: skip
        summary(f"r{number}", tok_s=tok_s, tok_per_j=tok_s and tok_s / 100, final_loss=loss, sku=sku, gpu_count=gpus,
                peak_vram_bytes=None if number == 0 else number << 30)  # fmt: skip


def test_every_column_sorts_and_what_is_unknown_comes_last() -> None:
    three()
    expected = {  # first in the direction that a column begins with, then turned
        "run_id": ("210", "012"), "name": ("102", "201"), "state": ("102", "210"), "sku": ("201", "102"),
        "tok_s": ("102", "012"), "tok_per_j": ("102", "012"), "final_loss": ("102", "012"), "duration_s": ("012", "210"),
        "peak_vram_bytes": ("210", "120"), "tags": ("210", "012"), "steps": ("210", "012"),
    }  # fmt: skip

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        table = await opened(pilot, app, 3)
        assert list(expected) == [c.key for c in COLUMNS]
        for number, (key, (first, turned)) in enumerate(expected.items()):
            if number:
                await pilot.press("o")
            assert "".join(order(table)).replace("r", "") == first, key
            mark = "▼" if COLUMNS[number].down else "▲"
            assert mark in str(table.columns[key].label)  # type: ignore[index]
            await pilot.press("O")
            assert "".join(order(table)).replace("r", "") == turned, key
            await pilot.press("O")
        await pilot.press("o")
        assert order(table) == ["r2", "r1", "r0"], "round to the first column"

    drive(act, size=(160, 30))


def test_80_columns_show_the_main_figures_and_scroll_to_the_others() -> None:
    three()
    assert sum(widths(79)[:7]) + 2 * 7 <= 79
    for room in (119, 140, 159, 300):
        assert sum(widths(room)) + 2 * len(COLUMNS) <= room

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await opened(pilot, app, 3)
        text = screen_text(app)
        for words in (
            "run",
            "recipe",
            "state",
            "where",
            "tok/s",
            "tok/J",
            "loss",
            "✗ cuda_oom",
            "1×H100 80GB HB",
            "1,200",
            "0.500",
        ):
            assert words in text
        assert "tags" not in text
        for _ in range(60):
            await pilot.press("right")
        await until(pilot, lambda: "tags" in screen_text(app) and "2.0 GiB" in screen_text(app))
        assert "r2" in screen_text(app), "the run stays where it is"
        await pilot.resize_terminal(160, 50)
        await until(pilot, lambda: "✗ failed cuda_oom" in screen_text(app))
        for words in ("1×H100 80GB HBM3", "tags", "t9", "steps", "VRAM"):
            assert words in screen_text(app)

    drive(act, size=(80, 24))


def test_the_filter_works_while_typing_and_escape_ends_it() -> None:
    three()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        table = await opened(pilot, app, 3)
        await pilot.press("slash", *"a100")
        await until(pilot, lambda: order(table) == ["r2", "r0"])
        assert said(app) == "2 of 3 runs; escape shows all"
        await pilot.press("space", *"OOM")
        await until(pilot, lambda: order(table) == ["r2"])
        await pilot.press("x")
        await until(pilot, lambda: table.row_count == 0)
        assert said(app) == "0 of 3 runs; escape shows all"
        await pilot.press("backspace", "down")
        assert app.focused is table
        assert order(table) == ["r2"]
        await pilot.press("escape")
        await until(pilot, lambda: table.row_count == 3)
        assert app.screen.query_one("#filter", Input).value == ""

    drive(act)


def test_ten_thousand_runs_are_all_within_reach() -> None:
    insert(10_000, id="'r' || lpad(n::VARCHAR, 4, '0')", name="'n' || n % 7")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        table = await opened(pilot, app, runs_screen.SHOWN)
        assert said(app).startswith("60 of 10,000 runs shown")
        await pilot.press("end")
        await until(pilot, lambda: table.row_count == 2 * runs_screen.SHOWN)
        assert order(table)[0] == "r9999"
        assert order(table)[-1] == f"r{10_000 - 2 * runs_screen.SHOWN:04}"
        await pilot.press("slash", *"r0007")
        await until(pilot, lambda: order(table) == ["r0007"])
        await pilot.press("escape", "O")
        await until(pilot, lambda: order(table)[0] == "r0000")

    drive(act)


def test_an_empty_history_says_how_to_begin() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("2")
        await until(
            pilot, lambda: isinstance(app.screen, RunsScreen) and said(app).startswith("no run yet: 3 launches")
        )
        await pilot.press("enter", "t", "d", "r", "o", "O", "slash", "x", "escape")
        assert isinstance(app.screen, RunsScreen)

    drive(act)


def test_the_place_is_kept_while_a_run_that_lives_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_screen, "REFRESH_S", 0.05)
    insert(50, id="'0' || n")
    run = make_run("growing", ranks=1)
    write(run.rank_journal(0), step(1))
    run.write_state(RunState(state="running", started_at=T0, recorder=ProcessId.of(1), step=1))
    ingest_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        table = await opened(pilot, app, 51)
        await pilot.press(*["down"] * 30)
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        chosen, scrolled = screen.chosen(), table.scroll_offset
        assert "▶ running" in str(table.get_row(run.run_id)[2])
        run.write_state(RunState(state="running", started_at=T0, recorder=ProcessId.of(1), step=77))
        ingest_run(run)
        await until(pilot, lambda: str(table.get_row(run.run_id)[-1]) == "77")
        assert (screen.chosen(), table.scroll_offset) == (chosen, scrolled)
        end(run, "failed", failure="signal")
        finish_run(run)
        finish_run(a_whole_run("new"))
        await until(pilot, lambda: table.row_count == 52)
        assert "✗ failed signal" in str(table.get_row(run.run_id)[2])
        assert screen.chosen() == chosen

    drive(act)


def test_a_history_that_is_held_keeps_the_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_screen, "RETRY_S", 0.05)
    three()
    held = False
    reading = queries.list_runs

    def busy(**more: Any) -> Any:
        if held:
            raise HistoryBusy("duckdb (process 7) holds the history x")
        return reading(**more)

    monkeypatch.setattr(queries, "list_runs", busy)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        nonlocal held
        table = await opened(pilot, app, 3)
        held = True
        await pilot.press("g")
        await until(pilot, lambda: said(app) == "! duckdb (process 7) holds the history x; trying again")
        assert table.row_count == 3
        await pilot.press("o")
        assert order(table)[0] == "r1"
        held = False
        await until(pilot, lambda: said(app) == "3 runs")

    drive(act)


def test_tags_of_any_text_are_shown_as_text_and_edited() -> None:
    run = a_whole_run("evil")
    finish_run(run)
    insert(id="'zz'", name="'[/b]x' || chr(27) || '[2J' || chr(10) || 'y'",
           tags="['[@click=app.quit]x[/]', chr(27) || '[31mred', 'two' || chr(10) || 'lines', '漢字']")  # fmt: skip

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await opened(pilot, app, 2)
        await until(pilot, lambda: "[@click=app.quit]x[/] red two lines 漢字" in screen_text(app))
        assert "[/b]x y" in screen_text(app)
        await pilot.press("down", "t", *"b,c", "enter")
        await until(pilot, lambda: "a b c" in screen_text(app))
        assert run.info().tags == ["a", "b", "c"]
        await pilot.press("slash", *"c", "enter")
        run.write_state(RunState(state="running", recorder=ProcessId.of(1)))
        await pilot.press("d", "y")
        await until(pilot, lambda: any("lives" in n.message for n in app._notifications))
        assert "trying again" not in said(app)

    drive(act, size=(200, 30))
