"""The fields of the Compare screen: tokens, prices, a data file, and what is wrong with them."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
from compare_screen import cell, field_message, of, opened, table, type_into
from helpers import wait_for
from screen_driver import drive, until
from textual.message_pump import MessagePump
from textual.pilot import Pilot
from textual.widgets import Input

from lorawatch.screens.app import LorawatchApp
from lorawatch.screens.compare import model
from lorawatch.screens.compare.token_counter import TokenCounter
from lorawatch.screens.shared.background import Answered

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
            assert field_message(screen) == ""

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
        for name, text, expected in WRONG:
            box = screen.query_one(f"#{name}", Input)
            before = box.value
            await type_into(pilot, screen, name, before)
            before_picture = screen.picture
            box.value = text
            await until(pilot, lambda expected=expected: expected in field_message(screen))
            assert field_message(screen).startswith("✗ "), (name, text)
            assert box.has_class("wrong")
            assert screen.picture.comparison == before_picture.comparison
            assert (of(screen).tokens, of(screen).prices.price_per_kwh) == (3_000_000, 0.2)
            box.value = before
            await until(pilot, lambda box=box: not box.has_class("wrong"))
            assert field_message(screen) == ""

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
        await until(pilot, lambda: "rtx 9999" in field_message(screen))

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
        await until(pilot, lambda: "enter counts those of" in field_message(screen))
        assert of(screen).tokens == 50_000_000, "the last valid comparison stays"
        await pilot.press("enter")
        await until(pilot, lambda: "counting " in field_message(screen))
        # the tokenizer of a model that is not on this machine: its size tells, at 4 bytes a token
        counted = data.stat().st_size // 4
        await until(pilot, lambda: of(screen).tokens == counted, 60)
        assert f"chats.jsonl: about {counted:,} tokens, from its size" in field_message(screen)
        assert of(screen).tokens_from.startswith("chats.jsonl: about")
        box.value = str(tmp_path / "nowhere.jsonl")
        await pilot.press("enter")
        await until(pilot, lambda: "no such file" in field_message(screen))
        assert field_message(screen).startswith("✗")
        box.value = str(tmp_path) + "/"
        await pilot.press("enter")
        await until(pilot, lambda: "a folder" in field_message(screen))
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
