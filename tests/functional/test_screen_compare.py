"""The Compare screen, driven by keys: what is chosen first, then what is seen; and the same numbers as everywhere else."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from helpers import lorawatch, wait_for
from history import T0, end, make_run, rows, step, write
from test_screens import drive, footer, screen_text, until
from textual.message_pump import MessagePump
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from lorawatch.comparing import words
from lorawatch.comparing.rows import Comparison
from lorawatch.recipe import loading
from lorawatch.run.directory import Gpu
from lorawatch.run.records import GpuSample, RankStarted
from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.compare import model
from lorawatch.screens.compare.below import CompareBelow
from lorawatch.screens.compare.model import Picture
from lorawatch.screens.compare.screen import CompareScreen
from lorawatch.screens.compare.token_counter import TokenCounter
from lorawatch.screens.shared.background import Answered
from lorawatch.screens.shared.figure_table import FigureTable, Line, elide
from lorawatch.storage.ingest import finish_run
from lorawatch.system import home

EXXACT = loading.load("exxact-8b").to_dict()
H100 = "NVIDIA H100 80GB HBM3"
PUBLISHED = 8


def trained(
    name: str = "exxact-8b", gpus: int = 1, step_s: float = 0.2, *, steps: int = 30, watts: float | None = 400.0,
    coupling: str = "ddp", state: str = "completed", sku: str = H100, batch: int = 2, tags: Iterable[str] = (),
) -> str:  # fmt: skip
    """A run of the published work in the history: 1,024 tokens a step and GPU, steps of about so long. Its id."""
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
    """The screen, once its table is there, and what comes behind it."""
    await pilot.press("4")
    await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.screen.picture != Picture())
    screen = cast("CompareScreen", app.screen)
    if filled:
        await until(pilot, lambda: screen._fields is not None and screen._fields.is_mounted and "Choose" in footer(app))
    return screen


def table(screen: CompareScreen) -> FigureTable:
    return screen.query_one("#table", FigureTable)


def of(screen: CompareScreen) -> Comparison:
    assert screen.picture.comparison is not None
    return screen.picture.comparison


def labels(screen: CompareScreen) -> list[str]:
    """What is compared, as the screen has it."""
    return [r.configuration.label for r in of(screen).rows]


def line(screen: CompareScreen, label: str, kind: str = "measured") -> Line:
    (found,) = (x for x in table(screen).table.lines if x.label == label and x.kind == kind)
    return found


def cell(screen: CompareScreen, label: str, heading: str, kind: str = "measured") -> str:
    return line(screen, label, kind).cells[table(screen).table.headings.index(heading) - 1]


async def go_to(pilot: Pilot[Any], screen: CompareScreen, label: str, kind: str = "published") -> None:
    """The cursor onto this line, by its keys."""
    wanted = table(screen).table.lines.index(line(screen, label, kind))
    await pilot.press("home", *["down"] * wanted)
    assert table(screen).current == line(screen, label, kind)


async def type_into(pilot: Pilot[Any], screen: CompareScreen, name: str, text: str) -> None:
    """Into the field, in place of what is there."""
    await pilot.press("escape", "t")
    assert pilot.app.focused is screen.query_one("#tokens")
    box = screen.query_one(f"#{name}", Input)
    box.value = ""
    box.focus()
    await pilot.press(*text)


def said(screen: CompareScreen) -> str:
    """The line below the fields."""
    return str(screen.query_one("#words").render())  # type: ignore[attr-defined]


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


# --- the fields


def test_tokens_as_people_write_them() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        for text, tokens, shown in (
            ("50M", 50_000_000, "50M tokens"), ("5e6", 5_000_000, "5M tokens"), ("1.2B", 1_200_000_000, "1.2B tokens"),
            ("7_000_000", 7_000_000, "7M tokens"), ("", 50_000_000, "50M tokens"),
        ):  # fmt: skip
            await type_into(pilot, screen, "tokens", "")
            screen.query_one("#tokens", Input).value = text
            await until(pilot, lambda tokens=tokens: of(screen).tokens == tokens)
            assert shown in table(screen).table.headings
            assert shown.partition(" ")[0] in screen.picture.ladder.headings
            assert said(screen) == ""

    drive(act)


WRONG = (
    ("tokens", "0", "must be above 0"),
    ("tokens", "-1", "is no number of tokens"),
    ("tokens", "1.5", "a fraction of a token"),
    ("tokens", "many", "or name a data file"),
    ("tokens", "1.2Bmany", "or name a data file"),
    ("tokens", "1e999", "more tokens than any data set has"),
    ("price_per_kwh", "-0.3", "must be a number not below 0"),
    ("price_per_kwh", "nan", "must be a number not below 0"),
    ("price_per_kwh", "0,30", "write it as 0.30"),
    ("hardware", "RTX PRO 4500", "is not NAME=PRICE"),
    ("hardware", "RTX PRO 4500=-5", "must be a number not below 0"),
    ("hardware", "RTX PRO 4500=2600, host=-1", "must be a number not below 0"),
    ("hardware", "years=0", "must be above 0 years"),
    ("hardware", "use=170%", "at most 1"),
    ("extrapolate", "0", "is no list of GPU counts"),
    ("extrapolate", "-8", "is no list of GPU counts"),
    ("extrapolate", "99999999", "is no list of GPU counts"),
)


def test_what_is_wrong_is_said_beside_the_field_and_the_last_comparison_stays() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "tokens", "3M")
        await type_into(pilot, screen, "price_per_kwh", "0.2")
        await until(pilot, lambda: of(screen).prices.price_per_kwh == 0.2 and of(screen).tokens == 3_000_000)
        for name, text, told in WRONG:
            box = screen.query_one(f"#{name}", Input)
            before = box.value
            await type_into(pilot, screen, name, before)
            before_picture = screen.picture
            box.value = text
            await until(pilot, lambda told=told: told in said(screen))
            assert said(screen).startswith("✗ "), (name, text)
            assert box.has_class("wrong")
            assert screen.picture.comparison == before_picture.comparison
            assert (of(screen).tokens, of(screen).prices.price_per_kwh) == (3_000_000, 0.2)
            box.value = before
            await until(pilot, lambda box=box: not box.has_class("wrong"))
            assert said(screen) == ""

    drive(act)


def test_prices_give_costs_and_a_price_that_nobody_takes_is_said() -> None:
    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "price_per_kwh", "0.30")
        screen.query_one("#hardware", Input).value = "RTX PRO 4500=2600, rtx 9999=1, host=1000, years=5, use=60%"
        await until(
            pilot, lambda: "hardware cost" in table(screen).table.headings and of(screen).prices.life_years == 5
        )
        prices = of(screen).prices
        assert (prices.price_per_kwh, prices.host_price, prices.utilisation) == (0.30, 1000.0, 0.6)
        # 1.448 kWh × 0.30; (2,600 + 1,000) × 5.001 h ÷ (5 × 8,766 h × 0.6)
        assert cell(screen, "1 × RTX PRO 4500", "energy cost", "published") == "0.43"
        assert cell(screen, "1 × RTX PRO 4500", "hardware cost", "published") == "0.68"
        assert cell(screen, "1 × RTX PRO 5000", "hardware cost", "published") == "—"
        await until(pilot, lambda: "rtx 9999" in said(screen))

    drive(act)


def test_prices_and_tokens_are_remembered_and_rubbish_is_not(lorawatch_home: Path) -> None:
    async def first(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "tokens", "2M")
        await type_into(pilot, screen, "price_per_kwh", "0.4")
        await until(pilot, lambda: model.remembered() == {"tokens": "2M", "price_per_kwh": "0.4"})
        screen.query_one("#price_per_kwh", Input).value = "-1"
        await type_into(pilot, screen, "tokens", "2.0M")
        await until(pilot, lambda: screen._words.get("tokens") == "2.0M")

    async def second(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        assert of(screen).tokens == 2_000_000
        assert of(screen).prices.price_per_kwh == 0.4
        assert screen.query_one("#tokens", Input).value == "2.0M"

    async def third(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        assert of(screen).tokens == 50_000_000
        assert of(screen).prices.price_per_kwh == 0.5

    drive(first)
    drive(second)
    (lorawatch_home / "compare.json").write_text(
        '{"tokens": "many", "price_per_kwh": "0.5", "hardware": "=\\u001b[2J"}'
    )
    drive(third)
    for rubbish in (b"\xff\xfe", b'{"tokens": 7}', b"[]", b"x" * 200_000):
        (lorawatch_home / "compare.json").write_bytes(rubbish)
        assert model.remembered() == {}


def test_a_data_files_tokens_are_counted_beside_everything_else(tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text('{"text": "one two three four"}\n' * 500)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "tokens", "")
        box = screen.query_one("#tokens", Input)
        box.value = str(data)
        await until(pilot, lambda: "enter counts those of" in said(screen))
        assert of(screen).tokens == 50_000_000, "the last valid comparison stays"
        await pilot.press("enter")
        await until(pilot, lambda: "counting " in said(screen))
        # the tokenizer of a model that is not on this machine: its size tells, at 4 bytes a token
        counted = data.stat().st_size // 4
        await until(pilot, lambda: of(screen).tokens == counted, 60)
        assert f"chats.jsonl: about {counted:,} tokens, from its size" in said(screen)
        assert of(screen).tokens_from.startswith("chats.jsonl: about")
        box.value = str(tmp_path / "nowhere.jsonl")
        await pilot.press("enter")
        await until(pilot, lambda: "no such file" in said(screen))
        assert said(screen).startswith("✗")
        box.value = str(tmp_path) + "/"
        await pilot.press("enter")
        await until(pilot, lambda: "a folder" in said(screen))
        assert of(screen).tokens == counted
        box.value = "3M"
        await until(pilot, lambda: of(screen).tokens == 3_000_000)
        assert of(screen).tokens_from == ""

    drive(act, size=(160, 50))


def counting() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "lorawatch.training.counting" in " ".join(p.cmdline())]


def test_a_count_is_ended_by_the_next_one_of_the_same_file_and_is_not_heard(tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text('{"text": "one two three four"}\n' * 10)
    heard: list[Answered] = []
    node = cast("MessagePump", SimpleNamespace(is_running=True, post_message=heard.append))
    counter = TokenCounter()
    counter.count(node, data, "one/model", 512)
    wait_for(counting)
    counting()[0].suspend()  # so that it cannot end by itself
    counter.count(node, data, "another/model", 512)
    wait_for(lambda: len(heard) == 2)
    assert (heard[0].value, heard[0].error) == (None, None)
    assert "the tokenizer of another/model is not here" in heard[1].value[1].words
    counter.close()
    assert counting() == []


def test_leaving_ends_a_count_that_is_on_its_way(tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text('{"text": "one two three four"}\n' * 10)
    before = set(threading.enumerate())

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await type_into(pilot, screen, "tokens", "")
        screen.query_one("#tokens", Input).value = str(data)
        await pilot.press("enter")
        await until(pilot, counting)
        counting()[0].suspend()  # so that it cannot end by itself

    drive(act)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread.name
    assert counting() == []


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


# --- a file


@pytest.mark.parametrize("ending", ["html", "csv", "json", "md", "txt"])
def test_it_is_written_in_the_form_that_the_ending_tells(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{ending}"

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await go_to(pilot, screen, "3 × RTX PRO 4500")
        await pilot.press("space")
        await until(pilot, lambda: len(labels(screen)) == PUBLISHED - 1)
        await pilot.press("e")
        await until(pilot, lambda: app.screen is not screen and bool(app.screen.query(Input)))
        box = app.screen.query_one(Input)
        assert box.value == "lorawatch-compare.html"
        box.value = str(path)
        await pilot.press("enter")
        await until(pilot, lambda: f"✓ written: {path}"[:60] in screen_text(app))

    drive(act, size=(160, 50))
    text = path.read_text()
    begin = {
        "html": "<!doctype html>",
        "csv": "provenance,",
        "json": "{",
        "md": "4 × RTX PRO 4500",
        "txt": "4 × RTX PRO 4500",
    }
    assert text.startswith(begin[ending])
    assert "2 × RTX PRO 4500" in text or "RTX PRO 4500,2" in text or '"count": 2' in text
    assert "3 × RTX PRO 4500 (" not in text.replace("3 × RTX PRO 4500 (published): More", "")


def test_what_cannot_be_written_is_said_and_no_file_is_lost(tmp_path: Path) -> None:
    there = tmp_path / "there.csv"
    there.write_text("mine")

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)

        async def export(name: str) -> None:
            await until(pilot, lambda: app.screen is screen)
            await pilot.press("e")
            await until(pilot, lambda: app.screen is not screen and bool(app.screen.query(Input)))
            app.screen.query_one(Input).value = name
            await pilot.press("enter")

        await export(str(tmp_path / "x.pdf"))
        await until(pilot, lambda: "has no known extension; use one of .html" in screen_text(app))
        await export(str(tmp_path / "no" / "where.csv"))
        await until(pilot, lambda: "cannot be written: No such file or directory" in screen_text(app))
        await export("/proc/x.csv")
        await until(pilot, lambda: "x.csv cannot be written" in screen_text(app))
        await export(str(there))
        await until(pilot, lambda: "Replace it?" in screen_text(app))
        await pilot.press("n")
        assert there.read_text() == "mine"
        await export(str(there))
        await until(pilot, lambda: "Replace it?" in screen_text(app))
        await pilot.press("y")
        await until(pilot, lambda: "✓ written" in screen_text(app))
        assert there.read_text().startswith("provenance,")

    drive(act, size=(160, 50))


# --- the same numbers everywhere


class Cells(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in = True

    def handle_endtag(self, tag: str) -> None:
        self._in = self._in and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in:
            self.rows[-1][-1] += data


def test_the_screen_every_format_and_the_view_say_the_same() -> None:
    for repeat in range(3):
        trained(gpus=1, step_s=0.200 + 0.003 * repeat)
        trained(gpus=2, step_s=0.207 + 0.002 * repeat)
        trained(gpus=2, step_s=0.203 + 0.001 * repeat, coupling="separate")
    wanted = ["1 × H100 SXM", "2 × H100 SXM", "2 × H100 SXM separate"]
    headings = ("tok/s", "per GPU", "speed-up", "efficiency", "coupling", "lost: machine", "lost: comm.", "tok/J", "× baseline",
                "50M tokens", "kWh")  # fmt: skip
    screen_cells: dict[str, dict[str, str]] = {}
    seen: list[str] = []

    async def act(pilot: Pilot[Any], app: LorawatchApp) -> None:
        screen = await opened(pilot, app)
        await pilot.press("p")
        await until(pilot, lambda: labels(screen) == wanted)
        screen_cells.update({label: {h: cell(screen, label, h) for h in headings} for label in wanted})
        await pilot.press("escape")
        for _ in range(len(table(screen).table.headings)):
            seen.append(screen_text(app))
            await pilot.press("right")

    drive(act, size=(160, 50))
    for label, cells in screen_cells.items():
        for text in cells.values():
            assert any(label in row and f" {text} " in row for page in seen for row in page.splitlines()), (label, text)

    def printed(form: str) -> str:
        done = lorawatch("compare", "--no-published", "--format", form)
        assert done.returncode == 0, done.stderr
        return done.stdout

    csv_rows = {label_of(r): r for r in csv.DictReader(io.StringIO(printed("csv")))}
    json_rows = {label_of(r): r for r in json.loads(printed("json"))["rows"]}
    view = {
        (ranks, coupling): figures
        for ranks, coupling, *figures in rows(
            "SELECT ranks, coupling, tok_s, tok_s_ci95, tok_s_per_rank, scaling, efficiency_pct, coupling_efficiency_pct, "
            "shared_machine_loss_pct, communication_loss_pct, tok_per_j, runs FROM v_scaling"
        )
    }
    assert set(csv_rows) == set(json_rows) == set(screen_cells) == set(wanted)
    for label, cells in screen_cells.items():
        of_csv, of_json = csv_rows[label], json_rows[label]
        tok_s, ci95, per_gpu, scaling, efficiency, coupling, machine, comm, per_j, runs = view[
            int(of_csv["count"]), of_csv["coupling"]
        ]
        assert runs == 3
        assert cells["tok/s"] == f"{tok_s:,.0f} ± {ci95:,.0f}"
        assert cells["per GPU"] == f"{per_gpu:,.0f}"
        assert cells["speed-up"].startswith(f"{scaling:.2f}")
        assert cells["efficiency"].startswith("—" if of_csv["count"] == "1" else f"{efficiency:.1f}")
        assert cells["coupling"].startswith("—" if coupling is None or label != "2 × H100 SXM" else f"{coupling:.1f}")
        if label == "2 × H100 SXM":
            assert cells["lost: machine"].startswith(f"{machine:.1f}")
            assert cells["lost: comm."].startswith(f"{comm:.1f}")
        assert cells["tok/J"].startswith(f"{per_j:.1f}")
        for heading, name, digits in (
            ("tok/s", "tok_s", 0), ("per GPU", "tok_s_per_gpu", 0), ("speed-up", "scaling", 2), ("tok/J", "tok_per_j", 1),
            ("× baseline", "against_baseline", 2), ("kWh", "epoch_kwh", 2),
        ):  # fmt: skip
            assert cells[heading].startswith(f"{float(of_csv[name]):,.{digits}f}"), (heading, of_csv[name])
            assert float(of_csv[name]) == pytest.approx(of_json[name], rel=1e-12)
        assert cells["50M tokens"] == words.long_duration(float(of_csv["epoch_s"]))
        assert float(of_csv["tok_s"]) == pytest.approx(tok_s, rel=1e-9)
        assert float(of_csv["tok_s_ci95"]) == pytest.approx(ci95, rel=1e-3)

    html = Cells()
    html.feed(printed("html"))
    markdown = [
        [c.strip() for c in row.strip("|").split("|")] for row in printed("markdown").splitlines() if row[:1] == "|"
    ]
    for told in (html.rows, markdown):
        for label, cells in screen_cells.items():
            own = {c for row in told if row and row[0] == label for c in row}
            assert set(cells.values()) <= own | {"—"}, (label, set(cells.values()) - own)


def label_of(row: dict[str, Any]) -> str:
    assert row["sku"] == H100
    return f"{row['count']} × H100 SXM" + (" separate" if row["coupling"] == "separate" else "")
