"""The README's questions are answered by a real history, and its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from helpers import TINY, lorawatch

from lorawatch.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_ten_queries_answer(lorawatch_home: Path) -> None:
    assert lorawatch(*TINY, "--sweep", "1,2").returncode == 0
    assert lorawatch("--record", "--", "false").returncode == 1
    queries = re.findall(r"```sql\n(.*?)```", README, re.S)
    assert len(queries) == 10
    without_gpu = {6, 7}  # answers about GPUs: right, and empty of figures, on a machine without one
    for number, query in enumerate(queries):
        result = lorawatch("sql", query, "--format", "json")
        assert result.returncode == 0, f"query {number + 1}: {result.stderr}"
        rows = json.loads(result.stdout)
        assert rows or number in without_gpu, f"query {number + 1} finds nothing"
    out = lorawatch("sql", queries[2], "--format", "json").stdout
    scaling = json.loads(out)
    assert [(r["ranks"], r["efficiency_pct"] == 100) for r in scaling] == [(1, True), (2, False)]


def test_every_command_of_the_tour_exists_and_every_command_is_in_the_readme() -> None:
    tour = README.partition("## A tour")[2].partition("```sh")[2].partition("```")[0]
    named = set(re.findall(r"^lorawatch ([a-z]+)", tour, re.M))
    assert named <= set(COMMANDS)
    assert set(COMMANDS) - {"record", "supervise"} <= named
