"""The command line: what it loads, and how `--record` reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import lorawatch

from lorawatch.cli.main import COMMANDS, HIDDEN, normalize
from lorawatch.text.numbers import MISSING, duration, gib, number
from lorawatch.text.sanitize import clean

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "numpy")


@pytest.mark.parametrize("args", [["--help"], ["runs"], ["--record", "--help"], ["doctor", "--help"]])
def test_no_command_that_only_watches_loads_torch(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from lorawatch.cli.main import run\n"
        f"run({args!r})\n"
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in result.stdout


def test_help_alone_loads_neither_the_history_nor_the_driver() -> None:
    code = (
        "import sys\nfrom lorawatch.cli.main import run\nrun(['--help'])\n"
        "print('LOADED', [m for m in ('duckdb', 'jinja2', 'pynvml', 'msgspec', 'psutil', 'rich', 'yaml') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in result.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--record"], (["record"], None, False)),
        (["--record", "demo", "--json"], (["record", "demo", "--json"], None, False)),
        (["--tag", "x", "--record", "demo"], (["record", "--tag", "x", "demo"], None, False)),
        (["--record", "--", "python", "t.py", "--record"], (["record"], ["python", "t.py", "--record"], False)),
        (
            ["--debug", "--record", "--tag", "x", "--", "a", "--debug"],
            (["record", "--tag", "x"], ["a", "--debug"], True),
        ),
        (["--record", "--"], (["record"], [], False)),
        (["runs"], (["runs"], None, False)),
    ],
)
def test_record_reads_as_it_is_written(args: list[str], expected: tuple[list[str], list[str] | None, bool]) -> None:
    assert normalize(args) == expected


def test_help_names_every_command() -> None:
    out = lorawatch("--help").stdout
    assert "--record" in out
    for name in set(COMMANDS) - HIDDEN:
        assert name in out


def test_every_command_has_help_of_its_own() -> None:
    for name in set(COMMANDS) - HIDDEN:
        result = lorawatch(name, "--help")
        assert result.returncode == 0, name
        assert "Usage" in result.stdout


def test_figures_read_as_people_write_them() -> None:
    assert (number(None), gib(None), duration(None)) == (MISSING, MISSING, MISSING)
    assert number(12345.678, 1, "W") == "12,345.7 W"
    assert gib(3 * 2**30) == "3.0 GiB"
    assert [duration(s) for s in (7, 67, 3723, 200_000)] == ["0:07", "1:07", "1:02:03", "2 d 7 h"]


def test_text_from_outside_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[31mred\x1b]0;title\x07b\x9b1m") == "aredb"
