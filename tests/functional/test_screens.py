"""The screens, driven by keys: what a person sees and what follows from it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from history import DATA, T0, a_whole_run, an_evaluated_run, make_run, step, write
from screen_driver import drive, footer, screen_text, until
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from lorawatch.run.directory import RunDir, RunState
from lorawatch.run.records import Event, RankStarted
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.live.panes import PaneGrid
from lorawatch.screens.live.screen import LiveScreen
from lorawatch.storage.ingest import finish_run
from lorawatch.system.processes import ProcessId


def h100_run(home: Path) -> RunDir:
    folder = home / "runs" / "0gq2zx6h"
    shutil.copytree(DATA / "h100_run" / "0gq2zx6h", folder)
    return RunDir(folder)


def test_with_no_run_the_panes_are_a_monitor_of_this_machine() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "this machine" in screen_text(app) and "CPU" in screen_text(app))
        assert "1 Live" in screen_text(app)
        await until(pilot, lambda: "] Next run" in footer(app) and "q Quit" in footer(app))
        assert "Stop" not in footer(app), "there is nothing to stop"

    drive(act)


@pytest.mark.parametrize(
    ("width", "words"), [(120, "eval 2.1000 (lowest 1.9000, step 20)"), (80, "eval 2.1000 (lowest at step 20)")]
)
def test_live_tells_the_last_evaluation_and_the_lowest_beside_the_loss(width: int, words: str) -> None:
    run = an_evaluated_run((2.5, 1.9, 2.05, 2.1))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: words in screen_text(app))
        assert "loss 2.0000" in next(line for line in screen_text(app).splitlines() if words in line)

    drive(act, size=(width, 24), run=run.run_id, speed=100.0)


def test_a_replay_of_a_real_run_pauses_seeks_and_ends(lorawatch_home: Path) -> None:
    h100_run(lorawatch_home)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: app.last_frame is not None and app.last_frame.replay is not None)
        await pilot.press("space")
        await until(pilot, lambda: app.last_frame.replay.paused)  # type: ignore[union-attr]
        for _ in range(20):
            await pilot.press("left")  # however far it came before it was paused
        for _ in range(17):
            await pilot.press("right")
        await until(pilot, lambda: "step 30/60" in screen_text(app))
        text = screen_text(app)
        assert "H100 80GB HBM3" in text
        assert "of 700 W" in text
        assert "REPLAY" in text
        assert "vm · 1×H100 80GB HBM3" in text.splitlines()[0], "the machine is the run's, not this one"
        assert "space Pause" in footer(app)
        assert "Stop" not in footer(app), "what has ended cannot be stopped"
        before = app.last_frame.head.step  # type: ignore[union-attr]
        await pilot.press("full_stop")
        await until(pilot, lambda: app.last_frame.head.step == before + 1)  # type: ignore[union-attr]
        await pilot.press("comma", "comma")
        await until(pilot, lambda: app.last_frame.head.step == before - 1)  # type: ignore[union-attr]
        for _ in range(6):
            await pilot.press("right")
        await until(pilot, lambda: "COMPLETED" in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: "this machine" in screen_text(app))

    drive(act, run="0gq2zx6h", speed=1.0)


def test_a_run_that_lives_shows_its_whole_curve_and_stops_on_request(lorawatch_home: Path) -> None:
    run = make_run("live-one", ranks=2)
    for rank in (0, 1):
        begin = RankStarted(
            at=time.time() - 60, attempt=0, rank=rank, local_rank=rank, world_size=2, host="h", pid=1, device="cpu",
            steps_total=200,
        )  # fmt: skip
        shift = time.time() - 60 - T0
        write(run.rank_journal(rank), begin, *(step(n, rank, ended_at=T0 + shift + n / 2) for n in range(1, 101)))
    from lorawatch.system.processes import ProcessId

    run.write_state(RunState(state="running", started_at=time.time() - 61, recorder=ProcessId.of(1)))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "step 100/200" in screen_text(app))  # the only live run is found without a word
        write(run.rank_journal(0), step(101, 0, ended_at=time.time()))
        write(run.rank_journal(1), step(101, 1, ended_at=time.time()))
        await until(pilot, lambda: "step 101/200" in screen_text(app))
        await until(pilot, lambda: "s Stop" in footer(app))
        await pilot.press("c")
        await until(pilot, lambda: run.requested("checkpoint"))
        await pilot.press("s")
        await until(pilot, lambda: "Stop" in screen_text(app) and "at its next step" in screen_text(app))
        await pilot.press("n")
        assert not run.requested("stop")
        await pilot.press("s", "y")
        await until(pilot, lambda: run.requested("stop"))
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "this machine" in screen_text(app))
        await pilot.press("left_square_bracket")
        await until(pilot, lambda: "step 101/200" in screen_text(app))
        shutil.rmtree(run.root)
        await until(pilot, lambda: "the last that was seen" in screen_text(app))
        assert "step 101" in screen_text(app), "what was seen last stays"

    drive(act)


def test_a_journal_that_was_cut_and_a_clock_that_steps_back_leave_the_screen_alive() -> None:
    run = make_run("cut", ranks=1)
    write(run.rank_journal(0), *(step(n, ended_at=time.time() - 60 + n / 10) for n in range(1, 51)))
    from lorawatch.system.processes import ProcessId

    run.write_state(RunState(state="running", started_at=time.time() - 61, recorder=ProcessId.of(1)))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "step 50" in screen_text(app))
        path = run.rank_journal(0)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # a disk that lost the end, mid-line
        write(path, step(51, ended_at=time.time() - 86_400))  # and a clock set back by a day
        for number in range(52, 200):  # what comes once the cut was seen is shown
            write(path, step(number, ended_at=time.time()))
            await pilot.pause(0.1)
            if "step 50" not in screen_text(app):
                break
        assert f"step {number}" in screen_text(app) or f"step {number - 1}" in screen_text(app)

    drive(act, run=run.run_id)


def test_a_lost_recorder_is_said_and_adopting_is_offered() -> None:
    run = make_run("orphan", ranks=1)
    write(run.rank_journal(0), step(1))
    gone = msgspec.structs.replace(ProcessId.own(), pid=999_999, started=1)
    run.write_state(RunState(state="running", started_at=T0, recorder=gone))

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "LOST" in screen_text(app) and "a adopts" in screen_text(app))

    drive(act, run=run.run_id)


def test_the_history_filters_sorts_opens_tags_and_deletes(lorawatch_home: Path) -> None:
    first, second = a_whole_run("alpha", gpus=1), a_whole_run("beta", state="failed")
    finish_run(first)
    finish_run(second)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("2")
        await until(pilot, lambda: app.screen.query(DataTable) and app.screen.query_one(DataTable).row_count == 2)
        await pilot.press("slash", *"alpha", "enter")
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 1)
        await pilot.press("t")
        await until(pilot, lambda: app.screen.query(Input))
        await pilot.press(*"lab7", "enter")
        await until(pilot, lambda: "lab7" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "Curves" in screen_text(app) and "loss" in screen_text(app))
        await until(pilot, lambda: "W per GPU" in screen_text(app))
        await pilot.press("plus", "right", "minus")
        await pilot.press("escape")
        await until(pilot, lambda: "Filter" in screen_text(app))
        await pilot.press("d", "n")
        assert first.root.is_dir()
        await pilot.press("d", "y")
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 0)
        assert not first.root.exists()
        await pilot.press("escape")
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 1)

    drive(act)


def test_hostile_text_goes_through_every_screen_as_text() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[/foo] [@click=app.quit]x[/] \u202eabc " + "A" * 1_000_000
    run = make_run("evil", ranks=1, tags=["[/b]", "\x1b[31mred"])
    info = run.info()
    info.name = "[/foo]\x1b[2J\u202e"
    run.write_info(info)
    write(run.rank_journal(0), step(1), step(2))
    write(run.events_journal, Event(at=T0, kind="x", severity="error", message=evil))
    run.rank_log(0, 0).write_bytes(b"\xff\xfe\x1b[2J[/foo]" + b"B" * 1_000_000 + b"\n[@click=app.quit]x\n")
    run.write_state(RunState(state="failed", failure="signal", message=evil, started_at=T0, ended_at=T0 + 5))
    finish_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "[/foo]" in screen_text(app))
        for keys in (
            ["2"],
            ["enter"],
            ["escape"],
            ["t"],
            ["escape"],
            ["d"],
            ["n"],
            ["3"],
            ["4"],
            ["v"],
            ["1"],
            ["l"],
            ["question_mark"],
        ):
            await pilot.press(*keys)
            await pilot.pause(0.3)
            text = screen_text(app)
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert "\x07" not in text
        assert app.is_running

    drive(act, run=run.run_id, size=(160, 50))


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 12)])
def test_eight_gpus_fit(lorawatch_home: Path, size: tuple[int, int]) -> None:
    run = a_whole_run("eight", gpus=7)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: app.last_frame is not None and len(app.last_frame.panes) == 8)
        await pilot.pause(0.2)
        grid = app.screen.query_one(PaneGrid)
        assert len(grid._lines) <= max(grid.size.height, 1)
        if size != (40, 12):
            assert all(f"{index}" in screen_text(app) for index in range(8))

    drive(act, run=run.run_id, size=size)


def test_any_size_is_survived_and_too_small_is_said() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        for mode in "1234":
            await pilot.press(mode)
            for size in ((30, 8), (40, 12), (250, 80), (80, 24), (3, 2), (141, 31)):
                await pilot.resize_terminal(*size)
                await pilot.pause(0.05)
                if size == (30, 8):
                    assert "too small" in screen_text(app)
                if size == (80, 24):
                    assert "too small" not in screen_text(app)
        await pilot.press("ctrl+t")
        assert not app.current_theme.dark

    drive(act)


def test_a_locked_history_is_said_and_the_screen_goes_on() -> None:
    import subprocess
    import sys

    finish_run(a_whole_run())
    from lorawatch.system import home as paths

    code = (
        f"import duckdb,time; c=duckdb.connect({str(paths.history_file())!r}); print('held',flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("2")
        await until(pilot, lambda: "trying again" in screen_text(app))
        holder.kill()
        holder.wait()
        await until(pilot, lambda: app.screen.query_one(DataTable).row_count == 1)

    try:
        drive(act)
    finally:
        holder.kill()


@pytest.mark.parametrize("keys", [[], ["2"], ["3"], ["4"], ["question_mark"], ["1"]])
def test_after_quitting_no_thread_is_left(keys: list[str]) -> None:
    before = set(threading.enumerate())

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: isinstance(app.screen, LiveScreen))
        await pilot.press(*keys)
        await pilot.pause(0.3)

    drive(act)
    left = {t for t in set(threading.enumerate()) - before if not t.name.startswith("asyncio")}
    deadline = time.monotonic() + 1
    while any(t.is_alive() for t in left) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [t.name for t in left if t.is_alive()]


@pytest.mark.parametrize("leaves", [True, False])
def test_only_what_breaks_before_the_user_leaves_is_told(leaves: bool) -> None:
    def breaks() -> None:
        raise LookupError("a widget that is not there")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: isinstance(app.screen, LiveScreen))
        if leaves:
            app.exit()
        app.screen.call_next(breaks)
        await asyncio.sleep(0.3)

    with contextlib.nullcontext() if leaves else pytest.raises(LookupError):
        drive(act)


def test_keys_that_are_no_longer_named_are_let_go() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await until(pilot, lambda: "q Quit" in footer(app))

        async def named(times: int) -> int:
            for _ in range(times):
                await pilot.press("question_mark")
                await until(pilot, lambda: "Everywhere:" in screen_text(app))
                await pilot.press("escape")
                await until(pilot, lambda: "q Quit" in footer(app))
            gc.collect()
            return sum(type(o).__name__ == "FooterKey" for o in gc.get_objects())

        before = await named(3)
        assert await named(6) <= before + 2

    drive(act)
