"""The live table's text is clean however it came there; what rich draws is not touched."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from lorawatch.cli.display import JsonLines, LiveTable, PlainLines, clean_console
from lorawatch.run.directory import Gpu, RunInfo, RunState
from lorawatch.run.records import Event
from lorawatch.watching.watch import Watch

EVIL = "a\x1b]52;c;Zm9v\x07b\x1b[31mc\x9b2J\u202ed\re\x7f[red]f"
GPU = Gpu(host="h", gpu_index=0, gpu_uuid="G", sku=EVIL, used=True)
INFO = RunInfo(run_id="r", name=EVIL, created_at=0, host=EVIL, user="u", world_size=1, device="cuda", gpus=[GPU])
EVENT = Event(at=0, kind=EVIL, severity="error", message=EVIL)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def harmless(text: str) -> bool:
    return not set(text) & set("\x07\x9b\u202e\x7f") and "\x1b]" not in text


def test_what_rich_draws_stays_and_what_it_is_given_is_cleaned(screen: Screen) -> None:
    table = Table("x", title=EVIL)
    table.add_row(EVIL)
    with contextlib.redirect_stdout(screen):
        clean_console().print(table, Text(EVIL, "bold red"), EVIL)
    said = screen.getvalue()
    assert "\x1b[" in said
    assert "[red]f" in said  # no markup
    assert harmless(said)


def test_the_table_and_its_events_are_clean(screen: Screen) -> None:
    with contextlib.redirect_stdout(screen):
        display = LiveTable()
        display.start(INFO)
        watch = Watch(INFO)
        watch.feed(EVENT)
        display.update(watch, RunState(state="running"))
        display.event(EVENT)
        display.stop()
    assert "abc" in screen.getvalue()
    assert harmless(screen.getvalue())


def test_plain_and_json_lines_are_clean_and_json_loses_nothing() -> None:
    plain, lines = io.StringIO(), io.StringIO()
    for display in (PlainLines(plain), JsonLines(lines)):
        display.start(INFO)
        display.event(EVENT)
    assert harmless(plain.getvalue())
    assert harmless(lines.getvalue())
    assert [json.loads(line).get("message") for line in lines.getvalue().splitlines()] == [None, EVIL]
