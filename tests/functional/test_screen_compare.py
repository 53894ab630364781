"""The Compare screen, driven by keys: what there is to compare, and what is chosen."""

from __future__ import annotations

import re
from typing import Any

from compare_screen import PUBLISHED, cell, go_to, labels, line, of, opened, table, trained, type_into
from screen_driver import drive, footer, screen_text, until
from textual.pilot import Pilot
from textual.widgets import OptionList

from lorawatch.screens.app import LorawatchApp

# --- what there is to compare


def test_published_tables_alone_are_compared() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        assert len(labels(screen)) == PUBLISHED
        text = screen_text(app)
        assert "8 configurations" in text
        assert "4 × RTX PRO 4500 (published) is the fastest: 77.8 min for 50M tokens" in text
        assert "✓▸○ 1 × RTX PRO 4500" in text
        assert "published, Exxact" in text
        assert re.search(r"5M +50M +500M +5B", text), "the epoch-time ladder"
        assert "e Export" in footer(app)

    drive(act, size=(160, 50))


def test_with_nothing_to_compare_it_says_what_to_do() -> None:
    trained(state="failed")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: "Nothing to compare" in screen_text(app))
        assert "3 launches a run; p brings the published tables back" in screen_text(app)
        assert screen.picture.comparison is None
        await pilot.press("e", "b", "space", "a", "w", "c", "v", "v")
        await until(pilot, lambda: any("nothing to write" in n.message for n in app._notifications))
        assert "left out: run" in "".join(screen.picture.notes)
        await pilot.press("p")
        await until(pilot, lambda: screen.picture.comparison is not None)

    drive(act)


def test_one_configuration_stands_alone() -> None:
    trained()

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: labels(screen) == ["1 × H100 SXM"])
        assert "1 configuration ·" in screen_text(app)
        assert "1 × H100 SXM takes" in screen_text(app)
        await pilot.press("c", "c", "c")

    drive(act)


def test_a_run_without_power_has_no_energy_and_no_energy_cost() -> None:
    trained(watts=None)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "price_per_kwh", "0.5")
        await until(pilot, lambda: "energy cost" in table(screen).table.headings)
        assert {cell(screen, "1 × H100 SXM", h) for h in ("tok/J", "kWh", "energy cost")} == {"—"}
        assert cell(screen, "1 × RTX PRO 4500", "energy cost", "published") == "0.72"

    drive(act)


# --- choosing


def test_a_line_is_taken_out_and_in_and_all_of_them() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await go_to(pilot, screen, "4 × RTX PRO 4500")
        await pilot.press("space")
        await until(pilot, lambda: "4 × RTX PRO 4500" not in labels(screen))
        assert not line(screen, "4 × RTX PRO 4500", "published").chosen
        assert table(screen).current == line(screen, "4 × RTX PRO 4500", "published"), "the cursor stays"
        text = screen_text(app)
        assert "8 configurations, 7 chosen" in text
        assert "· ○ 4 × RTX PRO 4500" in text
        assert "2 × RTX PRO 6000 Server Edition (published) is the fastest" in text
        assert cell(screen, "3 × RTX PRO 4500", "efficiency", "published") == "97.0%"
        await pilot.press("home", "space")
        await until(pilot, lambda: "1 × RTX PRO 4500" not in labels(screen))
        assert cell(screen, "3 × RTX PRO 4500", "efficiency", "published") == "97.0%", (
            "one GPU is still what it is taken of"
        )
        await pilot.press("a")
        await until(pilot, lambda: len(labels(screen)) == PUBLISHED)
        await pilot.press("a")
        await until(pilot, lambda: "Nothing is chosen" in screen_text(app))
        assert labels(screen) == []
        await pilot.press("e")
        await until(pilot, lambda: any("nothing to write" in n.message for n in app._notifications))
        await pilot.press("a")
        await until(pilot, lambda: len(labels(screen)) == PUBLISHED)

    drive(act)


def test_what_has_no_epoch_is_said_to_have_none() -> None:
    trained(gpus=2, coupling="separate")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: labels(screen) == ["2 × H100 SXM separate"])
        assert "There is no epoch time for this choice" in screen_text(app)
        assert "fastest" not in screen_text(app)

    drive(act)


def test_a_click_on_a_tick_takes_the_line_out() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.click("#table", offset=(1, 4))  # border, heading, and the third line
        await until(pilot, lambda: "3 × RTX PRO 4500" not in labels(screen))
        await pilot.click("#table", offset=(20, 5))
        assert table(screen).current == line(screen, "4 × RTX PRO 4500", "published")
        assert len(labels(screen)) == PUBLISHED - 1, "a click elsewhere only moves the cursor"

    drive(act)


def test_the_baseline_is_the_line_under_the_cursor() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        assert cell(screen, "4 × RTX PRO 4500", "× baseline", "published") == "3.86×"
        await go_to(pilot, screen, "4 × RTX PRO 4500")
        await pilot.press("b")
        await until(pilot, lambda: line(screen, "4 × RTX PRO 4500", "published").base)
        assert of(screen).baseline.label == "4 × RTX PRO 4500"
        assert cell(screen, "4 × RTX PRO 4500", "× baseline", "published") == "1.00×"
        assert cell(screen, "1 × RTX PRO 4500", "× baseline", "published") == "0.26×"
        assert "✓▸○ 4 × RTX PRO 4500" in screen_text(app)
        assert "· ▸ 4 × RTX PRO 4500" in screen_text(app)

    drive(act, size=(160, 50))


def test_other_work_stands_apart_unless_it_is_forced() -> None:
    trained("wide", batch=8, step_s=0.6)
    trained("exxact-8b", step_s=0.15)

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        assert of(screen).work["batch per GPU"] == "2", "the latest run's work"
        assert len(of(screen).other_work) == 1
        await pilot.press("w")
        await until(pilot, lambda: bool(app.screen.query(OptionList)) and "which work" in screen_text(app))
        text = screen_text(app)
        assert "batch 8 × 512 tokens" in text
        assert "1 configuration: 1 × H100 SXM" in text
        assert "9 configurations: 1 × H100 SXM, 1 × RTX PRO 4500" in text
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)
        await pilot.press("w", "down", "enter")
        await until(pilot, lambda: of(screen).work["batch per GPU"] == "8")
        assert labels(screen) == ["1 × H100 SXM"]
        await pilot.press("f")
        await until(pilot, lambda: len(labels(screen)) == 10)
        assert "! other work" in screen_text(app)
        assert "✓!○ 1 × RTX PRO 4500" in screen_text(app)
        assert "OTHER WORK" in cell(screen, "1 × RTX PRO 4500", "from", "published")
        await pilot.press("f")
        await until(pilot, lambda: labels(screen) == ["1 × H100 SXM"])

    drive(act, size=(160, 50))


def test_measured_published_simulated_and_extrapolated_are_never_shown_alike() -> None:
    for gpus in (1, 2):
        trained(gpus=gpus, step_s=0.2 + 0.01 * gpus)
    trained(gpus=4, step_s=0.1, sku="NVIDIA B200", tags=["simulated"])

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "extrapolate", "8")
        await until(pilot, lambda: any(x.kind == "extrapolated" for x in table(screen).table.lines))
        await pilot.press("escape")
        own = table(screen)
        looks = {}
        for number, each in enumerate(own.table.lines):
            own.cursor, own.top = -1, 0  # no line is under the cursor
            strip = own.render_line(number + 1)
            looks.setdefault((strip.text[2], str(strip._segments[0].style)), set()).add(each.kind)
        assert all(len(kinds) == 1 for kinds in looks.values()), looks
        assert {glyph for glyph, _ in looks} == {"●", "○", "◌", "◇"}
        assert len({style for _, style in looks}) == 4
        for kind in ("measured", "published", "extrapolated", "simulated"):
            own_lines = [x for x in own.table.lines if x.kind == kind]
            assert own_lines
            assert all(kind in x.cells[0] for x in own_lines)
        assert "● measured  ○ published  ◌ extrapolated  ◇ simulated" in screen_text(app)
        own.cursor = own.table.lines.index(line(screen, "8 × H100 SXM", "extrapolated"))
        own.focus()
        await pilot.press("b")
        await until(pilot, lambda: any("no baseline" in n.message for n in app._notifications))

    drive(act, size=(160, 50))
