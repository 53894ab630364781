"""Driving the screens by keys without a terminal, and reading what they show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from lorawatch.screens.app import LorawatchApp

Act = Callable[[Pilot[Any], LorawatchApp], Awaitable[None]]


def drive(act: Act, *, size: tuple[int, int] = (120, 40), run: str | None = None, speed: float | None = None) -> None:
    """Run the app without a terminal, of `size` (columns, rows), until `act` returns.

    Args:
        run: The run to open in Live.
        speed: Replay it, so many times as fast as it was.
    """

    async def work() -> None:
        app = LorawatchApp(run, replay_speed=speed)
        async with app.run_test(size=size) as pilot:
            await act(pilot, app)

    asyncio.run(work())


async def until(pilot: Pilot[Any], condition: Callable[[], Any], timeout: float = 60) -> None:
    """Let the app work until a condition holds; fails with what the screen shows after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, screen_text(pilot.app)  # type: ignore[arg-type]
        await pilot.pause(0.05)


def screen_text(app: LorawatchApp) -> str:
    """What is on the terminal, as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines)


def footer(app: LorawatchApp) -> str:
    """The lowest line: the keys."""
    return screen_text(app).splitlines()[-1]
