"""What one recorded sweep leaves: what it prints, how its runs are linked, and answers to the README's questions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import TINY, lorawatch, sql

QUERIES = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.S)
WITHOUT_GPU = {6, 7}  # questions about GPUs, by index: answered, and without a figure on a machine that has none


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with a sweep over one and two ranks and a command that failed; what the sweep printed."""
    home = tmp_path_factory.mktemp("swept")
    env = {"LORAWATCH_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    result = lorawatch(*TINY, "--sweep", "1,2", "--tag", "sweep", env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    assert lorawatch("--record", "--", "false", env=env).returncode == 1
    return home, result.stdout


@pytest.fixture
def home(swept: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as this test's home; for reading only."""
    monkeypatch.setenv("LORAWATCH_HOME", str(swept[0]))
    return swept[0]


def test_a_sweep_runs_one_after_the_other_and_links_them(home: Path) -> None:
    rows = sql(home, "SELECT world_size, state, sweep_id FROM runs WHERE list_contains(tags, 'sweep') ORDER BY run_id")
    assert [(w, s) for w, s, _ in rows] == [(1, "completed"), (2, "completed")]
    assert rows[0][2] == rows[1][2] is not None


def test_plain_output_says_where_it_is_and_ends_with_what_was_measured(swept: tuple[Path, str]) -> None:
    home, printed = swept
    assert printed.count("step 10/10") == 2
    assert "tok/s" in printed
    assert "completed" in printed
    for (run_id,) in sql(home, "SELECT run_id FROM runs WHERE state = 'completed'"):
        assert run_id in printed
    assert "\x1b" not in printed


@pytest.mark.usefixtures("home")
def test_the_ten_queries_of_the_readme_answer() -> None:
    assert len(QUERIES) == 10
    for number, query in enumerate(QUERIES):
        result = lorawatch("sql", query, "--format", "json")
        assert result.returncode == 0, f"query {number + 1}: {result.stderr}"
        rows = json.loads(result.stdout)
        assert rows or number in WITHOUT_GPU, f"query {number + 1} finds nothing"
    scaling = json.loads(lorawatch("sql", QUERIES[2], "--format", "json").stdout)
    assert [(r["ranks"], r["efficiency_pct"] == 100) for r in scaling] == [(1, True), (2, False)]
