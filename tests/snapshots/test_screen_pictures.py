"""What the other screens look like over a recorded sweep on two H100s."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history import T0
from pictures import home
from still import StillApp
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from lorawatch.screens.app import MachineKnown
from lorawatch.screens.launch import gpu_list, model
from lorawatch.watching.watch import Watch

SIZES = [(80, 24), (120, 40), (160, 50)]
# screen → keys, each followed by words that must have come before the next
SCREENS: dict[str, list[tuple[list[str], str]]] = {
    "runs": [(["2"], "9 runs")],
    "run": [(["2"], "9 runs"), (["slash", *"0gq3qhp5", "enter"], "1 of 9"), (["enter"], "W per GPU")],
    "run-steps-by-rank": [
        (["2"], "9 runs"), (["slash", *"0gq3qhp5", "enter"], "1 of 9"), (["enter"], "W per GPU"),
        (["x"], "over steps"), (["p"], "rank 0"),
    ],
    "launch": [(["3"], "tokens a step")],
    "launch-yaml": [(["3"], "tokens a step"), (["ctrl+e"], "recipe.yaml")],
    "compare": [(["4"], "11 configurations")],
    "compare-efficiency": [(["4"], "11 configurations"), (["c"], "scaling efficiency")],
    "help": [(["4"], "11 configurations"), (["question_mark"], "Everywhere")],
}  # fmt: skip


@pytest.fixture
def recorded_home(lorawatch_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lorawatch_home.mkdir()
    home(lorawatch_home)
    monkeypatch.setattr(model, "disk_line", lambda: "75.0 GiB of disk free at /home/lorawatch")
    monkeypatch.setattr(gpu_list, "usable_cores", lambda: 8)
    return lorawatch_home


def text(app: StillApp) -> str:
    return "\n".join("".join(s.text for s in strip) for strip in app.screen._compositor.render_strips())


async def until(pilot: Pilot[Any], condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, text(pilot.app)  # type: ignore[arg-type]
        await pilot.pause(0.05)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("screen", SCREENS)
def test_screen(snap_compare: Any, recorded_home: Path, screen: str, size: tuple[int, int]) -> None:
    app = StillApp(Watch(None, []).frame(T0))

    async def settled(pilot: Pilot[Any]) -> None:
        await app.settle(pilot)
        app.on_machine_known(MachineKnown([], "no GPU"))
        for keys, words in SCREENS[screen]:
            await pilot.press(*keys)
            await until(pilot, lambda words=words: words in text(app))  # type: ignore[misc]
        for kind in (Input, TextArea):
            for box in app.screen.query(kind):
                box.cursor_blink = False  # else the moment decides
        before = ""
        while before != text(app):  # what comes behind the first frame has come
            before = text(app)
            await pilot.pause(0.4)

    assert snap_compare(app, terminal_size=size, run_before=settled)
