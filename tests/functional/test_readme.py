"""The README's commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from lorawatch.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_command_of_the_tour_exists_and_every_command_is_in_the_readme() -> None:
    tour = README.partition("## A tour")[2].partition("```sh")[2].partition("```")[0]
    named = set(re.findall(r"^lorawatch ([a-z]+)", tour, re.M))
    assert named <= set(COMMANDS)
    assert set(COMMANDS) - {"record", "supervise"} <= named
