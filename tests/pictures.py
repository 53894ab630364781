"""The README's pictures: `python tests/pictures.py [NAME …]`, from recorded H100 runs, drawn by headless Chromium.

Needs `chromium` and the font Fira Code (Debian: chromium, fonts-firacode), since others misdraw braille. Writes
assets/screenshots/NAME.png.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
FOLDER = ROOT / "assets" / "screenshots"
SIZE = (132, 40)
BROWSER = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
)  # fmt: skip

# name → arguments of the app, then keys; a number waits so many seconds
PICTURES: dict[str, tuple[tuple[str | None, float | None], list[str | float]]] = {
    "live": (("0gq3qhp5", 1.0), [0.5, "space", *["right"] * 18, 0.5]),
    "run": ((None, None), ["2", 1.0, "slash", *"0gq3qhp5", "enter", 0.5, "enter", 1.5, "x", 1.0]),
    "launch": ((None, None), ["3", 2.0, "down", 1.0]),
    "compare": ((None, None), ["4", 2.5]),
}


def home(folder: Path) -> None:
    """A home with the recorded sweep's history and the runs that can be replayed."""
    (folder / "runs").mkdir()
    with gzip.open(DATA / "h100_x2_sweep" / "history.duckdb.gz") as packed:
        (folder / "history.duckdb").write_bytes(packed.read())
    run = folder / "runs" / "0gq3qhp5"
    shutil.copytree(DATA / "h100_x2_run" / "0gq3qhp5", run)
    from lorawatch.run.directory import RunDir
    from lorawatch.storage.edit import delete_run
    from lorawatch.storage.ingest import finish_run

    delete_run("0gq3qhp5")  # the slim history has no steps of it: they come from its journals again
    shutil.copytree(DATA / "h100_x2_run" / "0gq3qhp5", run, dirs_exist_ok=True)
    finish_run(RunDir(run))


async def take(name: str) -> str:
    from lorawatch.screens.app import LorawatchApp

    (run, speed), keys = PICTURES[name]
    app = LorawatchApp(run, replay_speed=speed)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(1.0)
        for key in keys:
            await (pilot.pause(key) if isinstance(key, float) else pilot.press(key))
        return app.export_screenshot()


def draw(svg: str, to: Path) -> None:
    """An SVG as PNG."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    wide, high = (int(float(v)) + 1 for v in box.groups())
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f'<body style="margin:0;background:#111"><div style="width:{wide}px">{svg}</div>')
        subprocess.run(
            ["chromium", *BROWSER, f"--user-data-dir={folder}/profile", f"--screenshot={to}",
             f"--window-size={wide},{high}", page.as_uri()], check=True, capture_output=True,
        )  # fmt: skip


def main(names: list[str]) -> Any:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORAWATCH_HOME"] = folder
        home(Path(folder))
        for name in names or list(PICTURES):
            draw(asyncio.run(take(name)), FOLDER / f"{name}.png")
            print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
