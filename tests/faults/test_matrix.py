"""One in ten cases of the fault matrix; `make faults` plays all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matrix import Case, cases, chosen, run

SHARE = 10


@pytest.mark.parametrize("case", chosen(cases(), (), SHARE, seed=0), ids=lambda case: case.name)
def test_a_fault_is_judged_rightly_and_costs_no_row_and_no_process(case: Case, tmp_path: Path) -> None:
    result = run(case, tmp_path / "scene", sys.executable, seed=0)
    if result.skipped:
        pytest.skip(result.skipped)
    assert not result.trouble, result.trouble
    assert not result.wrong, result.found


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names)) >= 120
