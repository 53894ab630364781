"""Open a recipe that is a YAML bomb in the Launch screen, by keys: `python launch_bomb.py FILE`.

Exit status 1 where the screen does not say what is wrong with it, or does not answer a key any more.
"""

from __future__ import annotations

import asyncio
import sys
import time

from lorawatch.screens.app import LorawatchApp


async def drive(path: str) -> str:
    app = LorawatchApp()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause(1)
        await pilot.press("3")
        await pilot.pause(2)
        began = time.monotonic()
        await pilot.press("ctrl+o", *path, "enter")
        await pilot.pause(2)
        await pilot.press("1")
        await pilot.pause(0.5)
        took = time.monotonic() - began
        await pilot.press("3")
        await pilot.pause(0.5)
        said = "\n".join(str(w.render()) for w in app.screen.walk_children() if hasattr(w, "render"))
        if took > 15:
            return f"the screen stood still for {took:.0f} s"
        if "alias" not in said and "anchor" not in said:
            return f"the screen does not say what is wrong: {said[-2000:]}"
    return ""


if __name__ == "__main__":
    if complaint := asyncio.run(drive(sys.argv[1])):
        sys.exit(complaint)
