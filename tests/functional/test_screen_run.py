"""A run's own page, driven by keys and the mouse: what is looked at first, then what is seen."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from history import DATA, T0, a_whole_run, an_evaluated_run, end, make_run, step, write
from screen_driver import drive, screen_text, until
from textual.events import MouseScrollUp
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from lorawatch.errors import HistoryBusy
from lorawatch.run.directory import Gpu, RunDir, RunState
from lorawatch.run.records import Event, GpuSample, RankStarted
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.runs import run_screen
from lorawatch.screens.runs.curve_look import EACH, CurveLook
from lorawatch.screens.runs.curve_plot import CurvePlot
from lorawatch.screens.runs.log_page import LogPage
from lorawatch.screens.runs.run_screen import PAGES, RunScreen, refresh_pause_s
from lorawatch.storage import queries
from lorawatch.storage.connection import writing
from lorawatch.storage.ingest import finish_run, ingest_run
from lorawatch.system.processes import ProcessId


async def opened(pilot: Pilot[Any], app: LorawatchApp, run: RunDir | str) -> tuple[RunScreen, CurveLook]:
    """The run's page over the list of runs, once it has been read."""
    await pilot.press("2")
    screen = RunScreen(run if isinstance(run, str) else run.run_id)
    app.push_screen(screen)
    await until(pilot, lambda: screen.row is not None and screen.plot.look.whole is not None)
    return screen, screen.plot.look


def finished(**more: Any) -> RunDir:
    run = a_whole_run(**more)
    finish_run(run)
    return run


def test_the_axis_turns_and_the_cursor_says_where_it_is() -> None:
    run = finished()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        _, look = await opened(pilot, app, run)
        assert (look.axis, look.part, look.window) == ("time", None, None)
        assert "over time" in screen_text(app)
        assert "step 40 of 40" in screen_text(app), "the cursor begins at the last step"
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "step")
        assert "over steps" in screen_text(app)
        assert look.whole is not None
        assert (look.whole.begin, look.whole.end) == (1.0, 41.0)
        await pilot.press("home")
        assert look.cursor == 1.0
        await until(pilot, lambda: " step 1 of 40" in screen_text(app))
        await pilot.press("right")  # a step is wider than a cell here
        await until(pilot, lambda: " step 2 of 40" in screen_text(app))
        await pilot.press("shift+right", "left")
        await until(pilot, lambda: " step 11 of 40" in screen_text(app))
        await pilot.press("end")
        await until(pilot, lambda: " step 40 of 40" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "time")

    drive(act)


def test_evaluations_are_on_the_curve_and_listed() -> None:
    run = an_evaluated_run((2.5, 1.9, 2.05, 2.1))
    finish_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        _, look = await opened(pilot, app, run)
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "step")
        text = screen_text(app)
        assert "◆ eval loss 2.1 · ★ lowest 1.9" in text
        curve = text.split("★ lowest 1.9")[1].split("tok/s")[0]
        assert (curve.count("◆"), curve.count("★")) == (3, 1)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "eval loss      2.1000 (lowest 1.9000, step 20)   4 evaluated" in screen_text(app))
        assert "       20    1.9000           700     5.0 s  lowest" in screen_text(app)

    drive(act)


def test_ranks_are_seen_together_alone_and_in_rows() -> None:
    run = finished()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        _, look = await opened(pilot, app, run)
        assert "all ranks together" in screen_text(app)
        for part, rank, words in ((0, 0, "rank 0 of 2"), (1, 1, "rank 1 of 2"), (EACH, None, "each of 2 ranks")):
            await pilot.press("p")
            await until(pilot, lambda part=part: look.part == part)
            assert look.rank == rank
            assert words in screen_text(app)
        text = screen_text(app)
        assert "rank 0 " in text
        assert "rank 1 " in text
        await pilot.press("m")
        assert look.metric == "loss"
        await until(pilot, lambda: "W per GPU" not in screen_text(app))
        await pilot.press("P")
        await until(pilot, lambda: look.rank == 1)
        await pilot.press("m", "m", "m", "m", "m", "p", "p")
        await until(pilot, lambda: look.part is None)
        assert look.metric is None

    drive(act)


def test_looking_closer_reads_single_steps_and_the_old_picture_stays_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished(steps=4000, gpus=1)
    gate = threading.Event()
    gate.set()
    load = run_screen.load_curves

    def slowly(*args: Any) -> Any:
        assert gate.wait(20)
        return load(*args)

    monkeypatch.setattr(run_screen, "load_curves", slowly)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        _, look = await opened(pilot, app, run)
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "step")
        assert look.curves is not None
        assert look.curves.series[None]["loss"].width == 8.0
        gate.clear()
        await pilot.press("plus", "plus", "plus", "plus")
        assert look.window == pytest.approx((3750.5, 4000.5), abs=8)
        await until(pilot, lambda: "reading …" in screen_text(app))
        assert look.curves is look.whole
        assert "16× closer" in screen_text(app)
        gate.set()
        await until(pilot, lambda: look.detailed and not look.waiting)
        assert look.curves.series[None]["loss"].width == 1.0  # type: ignore[union-attr]
        await until(pilot, lambda: "reading …" not in screen_text(app))
        await pilot.press("minus")
        assert "8.0× closer" in screen_text(app)
        await pilot.press("0")
        assert look.window is None
        assert "closer" not in screen_text(app)

    drive(act)


def test_a_click_sets_the_cursor_and_the_wheel_zooms_there() -> None:
    run = finished()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, look = await opened(pilot, app, run)
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "step")
        room = screen.plot.size.width - 19
        await pilot.click(CurvePlot, offset=(19 + room // 2, 5))
        assert look.cursor == pytest.approx(21.0, abs=0.5)
        await until(pilot, lambda: f" step {int(look.cursor or 0)} of 40" in screen_text(app))
        await pilot.click(CurvePlot, offset=(3, 5))
        assert look.cursor == pytest.approx(21.0, abs=0.5), "the labels are no plot"
        await pilot._post_mouse_events([MouseScrollUp], CurvePlot, offset=(30, 5))
        await until(pilot, lambda: look.window is not None)
        assert look.window is not None
        assert look.window[0] < 5
        assert look.cursor == pytest.approx(1 + 40 * 11.5 / room, abs=0.5)

    drive(act)


def live_run(steps: int) -> RunDir:
    run = make_run("growing", ranks=1)
    write(run.rank_journal(0), RankStarted(at=T0, attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cpu"),
          *(step(n) for n in range(1, steps + 1)))  # fmt: skip
    run.rank_log(0, 0).write_text("first line\n")
    run.write_state(RunState(state="running", started_at=T0, recorder=ProcessId.of(1), step=steps))
    ingest_run(run)
    return run


def test_a_slow_reading_puts_off_the_next_one_by_seconds_not_minutes() -> None:
    assert [refresh_pause_s(took) for took in (0.01, 0.25, 30.0)] == [3.0, 5.0, 10.0]


def test_a_run_that_lives_is_read_again_and_the_place_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_screen, "REFRESH_S", 0.05)
    monkeypatch.setattr(run_screen, "REFRESH_AT_MOST_S", 0.5)
    run = live_run(100)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, look = await opened(pilot, app, run)
        await pilot.press("x")
        await until(pilot, lambda: look.axis == "step")
        await pilot.press("home", "plus", "plus", "right", "right")
        window, cursor = look.window, look.cursor
        assert window == (1.0, 26.0)
        write(run.rank_journal(0), *(step(n) for n in range(101, 151)))
        ingest_run(run)
        await until(pilot, lambda: look.whole is not None and look.whole.end == 151.0)
        assert (look.window, look.cursor, look.axis) == (window, cursor, "step")
        await pilot.press("l")
        await until(pilot, lambda: "first line" in screen_text(app))
        with open(run.rank_log(0, 0), "a") as log:
            log.write("second line\n")
        await until(pilot, lambda: "second line" in screen_text(app))
        assert screen.page == "log"
        end(run)
        finish_run(run)
        await until(pilot, lambda: "completed" in screen_text(app))

    drive(act)


def test_the_log_page_shows_each_file_cleaned_and_says_when_the_directory_is_gone() -> None:
    run = finished()
    run.attempt_logs(1).mkdir()
    (run.rank_log(0, 0)).write_text("old attempt\n")
    (run.rank_log(1, 0)).write_bytes(b"\x1b[2J\x1b]0;owned\x07zero [/bold] \xff\n 10%\r 50%\r100%\n")
    (run.rank_log(1, 1)).write_text("".join(f"line {n}\n" for n in range(20_000)))
    (run.logs / "torchrun.log").write_text("from torchrun\n")
    (run.logs / "recorder.log").write_text("from the recorder\n")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, _ = await opened(pilot, app, run)
        await pilot.press("l")
        await until(pilot, lambda: "zero [/bold]" in screen_text(app))
        page = screen.query_one(LogPage)
        assert page.shown is not None
        assert page.shown.names == (
            "attempt_1/rank-0.log", "attempt_1/rank-1.log", "torchrun.log", "recorder.log", "attempt_0/rank-0.log",
        )  # fmt: skip
        assert page.shown.lines == ("zero [/bold] \ufffd", "100%")
        await pilot.press("l")
        await until(pilot, lambda: "line 19999" in screen_text(app))
        assert "the last 64 KiB of" in screen_text(app)
        assert page.shown.lines[0] == f"line {20_000 - len(page.shown.lines)}", "no half line"
        await pilot.press("l")
        await until(pilot, lambda: "from torchrun" in screen_text(app))
        await pilot.press("L")
        await until(pilot, lambda: page.shown is not None and page.shown.name == "attempt_1/rank-1.log")
        await pilot.press("L")
        await until(pilot, lambda: "zero" in screen_text(app))
        await pilot.press("L")
        await until(pilot, lambda: "old attempt" in screen_text(app))
        shutil.rmtree(run.root)
        await pilot.press("g")
        await until(pilot, lambda: "the run directory was deleted" in screen_text(app))
        await pilot.press("left_square_bracket")
        assert "old attempt" not in screen_text(app)

    drive(act)


def test_a_failed_ranks_log_is_shown_first() -> None:
    run = make_run("broken")
    write(run.rank_journal(0), step(1))
    for rank, words in ((0, "all is well"), (1, "Traceback: it broke")):
        run.rank_log(0, rank).write_text(words + "\n")
    run.exit_record(0, 1).write_text('{"rank": 1, "attempt": 0, "at": 1, "status": "failed"}')
    end(run, "failed")
    finish_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await opened(pilot, app, run)
        await pilot.press("l")
        await until(pilot, lambda: "Traceback: it broke" in screen_text(app))

    drive(act)


def test_ranks_stand_side_by_side_and_open_to_their_curves() -> None:
    run = finished()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, look = await opened(pilot, app, run)
        await pilot.press("right_square_bracket", "right_square_bracket")
        await until(pilot, lambda: screen.page == "ranks" and screen.query(DataTable))
        table = screen.query_one(DataTable)
        await until(pilot, lambda: table.row_count == 2)
        assert [str(c) for c in table.get_row_at(1)] == [
            "1", "2,041", "100.0%", "490.0", "490.0", "1.0", "20.0", "300", "60", "40", "1 · H100 80GB HBM3",
        ]  # fmt: skip
        assert str(table.get_row_at(0)[2]) == "98.0%"
        await pilot.press("down", "enter")
        await until(pilot, lambda: screen.page == "curves" and look.rank == 1)
        await until(pilot, lambda: "rank 1 of 2" in screen_text(app))

    drive(act)


def test_every_page_is_there_and_fits_small_and_large_terminals(lorawatch_home: Path) -> None:
    shutil.copytree(DATA / "h100_run" / "0gq2zx6h", lorawatch_home / "runs" / "0gq2zx6h")
    finish_run(RunDir(lorawatch_home / "runs" / "0gq2zx6h"))
    words = {
        "curves": "W per GPU", "figures": "throughput", "ranks": "of fastest", "events": " · saving: adapter",
        "log": "attempt_0/rank-0.log", "recipe": "  sequence_length: 512",
    }  # fmt: skip

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, _ = await opened(pilot, app, "0gq2zx6h")
        for page in PAGES:
            await until(pilot, lambda page=page: screen.page == page and words[page] in screen_text(app))
            for size in ((3, 2), (40, 12), (160, 50)) if page == "curves" else ((40, 12), (80, 24)):
                await pilot.resize_terminal(*size)
                for key in ("x", "p", "m", "plus", "left") if page == "curves" else ():
                    await pilot.press(key)
                await pilot.pause()
                assert max(len(line) for line in screen_text(app).splitlines()) <= max(size[0], 3)
            await pilot.press("right_square_bracket")
        await until(pilot, lambda: screen.page == "curves")
        assert app.is_running

    drive(act, size=(160, 50))


def test_a_long_event_goes_on_below_itself_and_says_whose_it_is() -> None:
    run = a_whole_run()
    words = " ".join(f"word{n:02}" for n in range(30))
    write(run.rank_journal(1), Event(at=T0 + 30, kind="told", severity="warning", rank=1, message=words))
    finish_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, _ = await opened(pilot, app, run)
        await pilot.press("right_square_bracket", "right_square_bracket", "right_square_bracket")
        await until(pilot, lambda: screen.page == "events" and "rank 1: word00" in screen_text(app))
        for size in ((120, 40), (80, 24)):
            await pilot.resize_terminal(*size)

            def found(width: int = size[0]) -> list[str]:
                lines = [line.rstrip() for line in screen_text(app).splitlines() if "word" in line]
                return lines if width - 20 < max(map(len, lines), default=0) <= width else []

            await until(pilot, found)
            first = found()[0].index("rank 1: word00")
            assert {len(line) - len(line.lstrip()) for line in found()[1:]} == {first}

    drive(act)


def test_tags_and_deletion_from_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen, _ = await opened(pilot, app, run)
        await pilot.press("t", *"lab7", "enter")
        await until(pilot, lambda: "#lab7" in screen_text(app))
        assert run.info().tags == ["a", "lab7"]
        await pilot.press("d", "n")
        assert run.root.is_dir()
        run.write_state(RunState(state="running", recorder=ProcessId.of(1)))
        await pilot.press("d", "y")
        await until(pilot, lambda: any("lives" in n.message for n in app._notifications))
        assert app.screen is screen
        end(run)
        await pilot.press("d", "y")
        await until(pilot, lambda: not run.root.exists() and app.screen is not screen)
        await until(pilot, lambda: "no run yet" in screen_text(app))

    drive(act)


def test_a_loss_that_was_no_number_is_marked() -> None:
    run = finished(gpus=1)
    with writing() as connection:
        connection.execute("UPDATE steps SET loss = 'nan' WHERE step = 20")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await opened(pilot, app, run)
        await until(pilot, lambda: screen_text(app).count("✗") == 1)

    drive(act)


def test_without_steps_there_is_no_axis_of_steps() -> None:
    run = make_run("powered", ranks=1, gpus=[Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="s", used=True)])
    write(run.host_journal("h"), *(GpuSample(sampled_at=T0 + n, gpu_uuid="G", power_w=100.0 + n) for n in range(9)))
    end(run)
    finish_run(run)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        _, look = await opened(pilot, app, run)
        await until(pilot, lambda: "no step" in screen_text(app))
        await pilot.press("x")
        await until(pilot, lambda: any("nothing over steps" in n.message for n in app._notifications))
        assert look.axis == "time"
        assert not look.waiting

    drive(act)


def test_a_run_that_is_not_in_the_history_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_screen, "RETRY_S", 0.05)
    run = a_whole_run()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("2")
        app.push_screen(RunScreen(run.run_id))
        await until(pilot, lambda: "is not in the history yet" in screen_text(app))
        finish_run(run)
        await until(pilot, lambda: "W per GPU" in screen_text(app))

    drive(act)


def test_a_history_that_is_held_is_said_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_screen, "RETRY_S", 0.05)
    run = finished()
    held = threading.Event()
    held.set()
    reading = queries.run_figures

    def busy(*args: Any, **more: Any) -> Any:
        if held.is_set():
            raise HistoryBusy("duckdb (process 7) holds the history x")
        return reading(*args, **more)

    monkeypatch.setattr(queries, "run_figures", busy)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("2")
        app.push_screen(RunScreen(run.run_id))
        await until(pilot, lambda: "holds the history x; trying again" in screen_text(app))
        held.clear()
        await until(pilot, lambda: "✓ completed" in str(app.screen.query_one("#title", Static).render()))
        assert "W per GPU" in screen_text(app)

    drive(act)
