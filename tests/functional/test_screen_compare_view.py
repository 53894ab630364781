"""What the Compare screen shows: chart, columns, sizes, a locked or growing history."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from compare_screen import go_to, labels, line, opened, table, trained
from screen_driver import drive, screen_text, until
from textual.pilot import Pilot

from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.compare.below import CompareBelow
from lorawatch.screens.compare.screen import CompareScreen
from lorawatch.screens.shared.figure_table import FigureTable, elide
from lorawatch.system import home

# --- what is seen


def test_the_chart_turns() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        below = screen.query_one(CompareBelow)
        for figure, shown in enumerate(
            ("tok/s, dotted: ideal", "scaling efficiency", "tok/J · c turns", "tok/s, dotted")
        ):
            assert below.figure == figure % 3
            await until(pilot, lambda shown=shown: shown in screen_text(app))
            text = screen_text(app)
            assert "○A RTX PRO 4500" in text
            assert "○C RTX PRO 6000 Server Edition" in text
            assert "GPUs" in text
            await pilot.press("c")

    drive(act, size=(160, 50))


def test_columns_that_do_not_fit_come_with_the_arrow_keys() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        headings = table(screen).table.headings
        assert headings[:4] == ("configuration", "from", "tok/s", "efficiency")
        assert "columns →" in screen_text(app)
        assert " W " not in screen_text(app).splitlines()[5]
        await pilot.press(*["right"] * 20)
        text = screen_text(app)
        assert re.search(r"· ← \d+ columns ·", text), "nothing is left on the right"
        assert f"{headings[-1]} " in text
        await pilot.press(*["left"] * 20)
        assert "←" not in screen_text(app)

    drive(act, size=(80, 24))


@pytest.mark.parametrize("size", [(160, 50), (120, 40), (80, 24), (79, 35), (40, 12)])
def test_no_figure_is_ever_cut(size: tuple[int, int]) -> None:
    for gpus in (1, 2):
        trained(gpus=gpus, step_s=0.2 + 0.01 * gpus)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app, filled=False)
        await until(pilot, lambda: screen._below is not None and screen._below.is_mounted)
        assert app.screen.query_one("#too-small").display is False
        for view in range(5):
            await pilot.pause(0.1)
            for name in ("#table", "#ladder"):
                widget = screen.query_one(name, FigureTable)
                if not widget.region.height:
                    continue
                known = {c.partition(",")[0] for x in widget.table.lines for c in x.cells}
                known |= {c for x in widget.table.lines for c in x.cells}
                for y in range(1, widget.size.height):
                    text = widget.render_line(y).text[widget._lead :]
                    parts = [p for p in re.split(r"\s{2,}", text.strip()) if p][1:]
                    assert set(parts) <= known, (view, parts)
            assert widest(app) <= size[0]
            await pilot.press("v")
        for letter in ("c", "t", "escape", "right", "end", "space", "a", "a", "f", "p", "p"):
            await pilot.press(letter)
        assert app.is_running

    drive(act, size=size)


def widest(app: LorawatchApp) -> int:
    return max(len(row) for row in screen_text(app).splitlines())


def test_where_there_is_little_room_one_thing_is_seen_at_a_time() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app, filled=False)
        await until(pilot, lambda: screen._fields is not None and screen._fields.is_mounted)
        assert "1 × RTX PRO 4500" in screen_text(app)
        await pilot.press("v")
        await until(pilot, lambda: "tok/s, dotted" in screen_text(app))
        await pilot.press("v")
        await until(pilot, lambda: re.search(r"  5M", screen_text(app)))
        await pilot.press("right")
        await until(pilot, lambda: re.search(r"  50M", screen_text(app)))
        await pilot.press("v")
        await until(pilot, lambda: "notes" in screen_text(app))
        await pilot.press("v")
        await until(pilot, lambda: "per kWh" in screen_text(app) and app.focused is screen.query_one("#tokens"))
        await pilot.press("escape")
        await until(pilot, lambda: "✓▸○" in screen_text(app))
        await pilot.press("down", "space")
        await until(pilot, lambda: "2 × RTX PRO 4500" not in labels(screen))
        await pilot.press("t")
        await until(pilot, lambda: "per kWh" in screen_text(app) and app.focused is screen.query_one("#tokens"))
        await pilot.press("escape")
        await until(pilot, lambda: "✓▸○" in screen_text(app) and app.focused is table(screen))

    drive(act, size=(40, 12))


def test_a_locked_history_is_said_and_asked_again() -> None:
    trained()
    holding = (
        f"import duckdb,time; c=duckdb.connect({str(home.history_file())!r}); print('held',flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        await pilot.press("4")
        await until(pilot, lambda: "trying again" in screen_text(app))
        assert isinstance(app.screen, CompareScreen)
        holder.kill()
        holder.wait()
        await until(pilot, lambda: app.screen.picture.comparison is not None)  # type: ignore[attr-defined]
        await until(pilot, lambda: "trying again" not in screen_text(app))
        assert "1 × H100 SXM" in labels(app.screen)  # type: ignore[arg-type]

    try:
        drive(act)
    finally:
        holder.kill()


def test_the_cursor_and_the_choices_stay_when_the_history_grows() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await go_to(pilot, screen, "2 × RTX PRO 5000")
        await pilot.press("space", "right")
        await until(pilot, lambda: "2 × RTX PRO 5000" not in labels(screen))
        await pilot.press("1")
        trained()
        await pilot.press("4")
        await until(pilot, lambda: "1 × H100 SXM" in labels(screen))
        assert table(screen).current == line(screen, "2 × RTX PRO 5000", "published")
        assert not line(screen, "2 × RTX PRO 5000", "published").chosen

    drive(act, size=(80, 24))


def test_text_from_outside_is_only_text() -> None:
    evil = "[/foo]\x1b[2J\u202e[@click=app.quit]x[/] " + "A" * 300
    trained(evil, sku="NVIDIA [b]\x1b[31m9000", tags=["\x1b]0;owned\x07"])

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await until(pilot, lambda: "[b]9000" in screen_text(app))
        for letter in ("v", "v", "w", "escape", "f", "c", "question_mark", "escape"):
            await pilot.press(letter)
            await pilot.pause(0.05)
            assert not set("\x1b\x07\u202e") & set(screen_text(app))
        assert screen.picture.comparison is not None

    drive(act)


def test_labels_lose_their_middle_only() -> None:
    assert elide("2 × RTX PRO 6000 Server Edition", 20) == "2 × RTX PR…r Edition"
    assert elide("short", 20) == "short"
    assert elide("", 3) == ""
