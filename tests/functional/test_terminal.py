"""The program in a real terminal: launched, left, come back to, ended every way there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

from lorawatch.run.directory import ENDED, RunDir
from lorawatch.system import home

PROGRAM = [sys.executable, "-m", "lorawatch"]


def latest() -> RunDir:
    return RunDir(sorted(home.runs_folder().iterdir())[-1])


def test_launch_watch_leave_come_back_stop_and_look_back(tmp_path: Path) -> None:
    env = {**os.environ}
    with Terminal(PROGRAM, env) as terminal:
        terminal.wait("this machine")
        terminal.wait("tokens a step", since=terminal.press("3"))
        recipe = tmp_path / "long.yaml"
        tiny = subprocess.run(
            [sys.executable, "-c", "from lorawatch.recipe import loading; print(loading.load('tiny').to_yaml())"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "steps: " in tiny
        recipe.write_text("".join(
            "  steps: 4000\n" if line.strip().startswith("steps:") else line for line in tiny.splitlines(True)
        ))  # fmt: skip
        terminal.press("\x0f")  # ctrl+o
        terminal.wait("Recipe file to open")
        terminal.wait("4000 steps", since=terminal.press(f"{recipe}\r"))
        mark = terminal.press("\x13")  # ctrl+s starts
        terminal.wait("RUNNING", since=mark, timeout=90)
        terminal.wait("/4000", since=mark, timeout=60)
        terminal.press("q")
        assert terminal.process.wait(60) == 0
        assert terminal.restored()
    run = latest()
    assert run.state().state == "running"
    before = run.state().step
    deadline = time.monotonic() + 30
    while run.state().step <= before:
        assert time.monotonic() < deadline, "the run goes on without the TUI"
        time.sleep(0.2)
    with Terminal([*PROGRAM, "attach", run.run_id], env) as terminal, Terminal(PROGRAM, env, (80, 24)) as other:
        terminal.wait("RUNNING")
        other.wait("RUNNING")  # a second TUI finds it without a word
        terminal.wait("at its next step", since=terminal.press("s"))
        mark = terminal.press("y")
        terminal.wait("STOPPED", since=mark, timeout=90)
        other.wait("STOPPED")
        assert run.state().state in ENDED
        terminal.wait("1 run", since=terminal.press("2"))
        terminal.wait("Figures", since=terminal.press("\r"))
        terminal.press("q")
        assert terminal.process.wait(60) == 0, terminal.text()[-600:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(number: signal.Signals) -> None:
    with Terminal(PROGRAM, {**os.environ}) as terminal:
        terminal.wait("this machine")
        terminal.process.send_signal(number)
        assert terminal.process.wait(60) >= 0
        assert terminal.restored()
        assert "Traceback" not in terminal.text()


def test_a_crash_is_one_line_and_gives_the_terminal_back() -> None:
    code = (
        "import sys; from lorawatch.screens.app import LorawatchApp as A, run_app\n"
        "def boom(self): raise ValueError('[/foo] boom')\n"
        "A.action_light = boom\nsys.exit(run_app())"
    )
    with Terminal([sys.executable, "-c", code], {**os.environ}) as terminal:
        terminal.wait("this machine")
        mark = terminal.press("\x14")  # ctrl+t
        assert terminal.process.wait(60) == 1
        time.sleep(0.2)
        assert terminal.restored()
        said = terminal.text(mark)
        assert "ValueError: [/foo] boom" in said
        assert "Traceback" not in said
        assert "locals" not in said


@pytest.mark.parametrize("signalled", [True, False], ids=["with SIGHUP", "without a signal"])
def test_a_closed_window_ends_the_program(signalled: bool) -> None:
    terminal = Terminal(PROGRAM, {**os.environ}, controlling=signalled)
    terminal.wait("this machine")
    terminal.close()
    try:
        terminal.process.wait(60)  # a busy machine takes its time; a program that waits for its terminal never ends
    finally:
        terminal.process.kill()


def test_no_colour_where_it_is_not_wanted() -> None:
    with Terminal(PROGRAM, {**os.environ, "NO_COLOR": "1"}) as terminal:
        terminal.wait("this machine")
        time.sleep(0.3)
        import re

        rgb = re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", terminal.output())
        assert all(len(set(c)) == 1 for c in rgb), "greys only"


def test_the_first_screen_loads_neither_torch_nor_the_history() -> None:
    code = (
        "import asyncio, sys\nfrom lorawatch.screens.app import LorawatchApp\n"
        "async def go():\n    app = LorawatchApp()\n    async with app.run_test() as pilot:\n"
        "        while app.last_frame is None or app.last_frame.host == '': await pilot.pause(0.05)\n"
        "asyncio.run(go())\n"
        "print([m for m in ('torch', 'transformers', 'duckdb', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
