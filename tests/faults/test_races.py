"""Commands at the same moment and in any order, kill after kill: short forms of `races.py`, `machine.py` and `kills.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import kill_often
from machine import run_machine
from races import race


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes that a failure leaves are pytest's to clean."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_commands_at_the_same_moment_leave_every_run_whole() -> None:
    tally = race(rounds=2, processes=12, seed=11, resumable_every=0)
    assert not tally.problems, "\n".join(tally.problems)
    assert tally.outcomes.total() == 24
    assert tally.rows > 0


def test_any_order_of_commands_and_kills_leads_to_an_end() -> None:
    found = run_machine(examples=2, steps=8, seed=3)
    assert not found, "\n".join(found)


def test_a_run_takes_kill_after_kill() -> None:
    count = kill_often(kills=6, minutes=1, seed=4, recipes=0)
    assert not count.problems, "\n".join(count.problems)
    assert count.kills.total() >= 6
