"""Sweeps that were recorded on two GPUs, read as the history of a user who records with an older lorawatch."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import lorawatch

DATA = Path(__file__).parents[1] / "data"


def compared(name: str, home: Path) -> dict[str, dict[str, Any]]:
    with gzip.open(DATA / name / "history.duckdb.gz") as packed:
        (home / "history.duckdb").write_bytes(packed.read())
    done = lorawatch("compare", "--format", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = [row for row in told["rows"] if row["provenance"] == "measured"]
    return {f"{row['count']} {row['coupling']}": row for row in rows}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAWATCH_HOME", str(tmp_path))
    return tmp_path


def test_a_compiled_sweep_tells_what_coupling_costs_from_noise(home: Path) -> None:
    rows = compared("h100_x2_sweep_fast", home)
    assert set(rows) == {"1 ddp", "2 ddp", "2 separate"}
    one, coupled, apart = rows["1 ddp"], rows["2 ddp"], rows["2 separate"]
    assert one["tok_s"] == pytest.approx(17_698, abs=1)
    assert (coupled["efficiency_pct"], coupled["efficiency_pct_ci95"]) == pytest.approx((96.65, 1.58), abs=0.01)
    assert coupled["coupling_efficiency_pct"] == pytest.approx(96.84, abs=0.01)
    assert coupled["shared_machine_pct"] + coupled["communication_pct"] == pytest.approx(
        100 - coupled["efficiency_pct"]
    )
    assert apart["efficiency_pct"] == pytest.approx(99.81, abs=0.01)
    assert one["tok_per_j"] > apart["tok_per_j"] > coupled["tok_per_j"]
    assert coupled["runs"] == 2, "the stopped run of the third repeat is left out"


def test_an_exchange_during_the_backward_pass_costs_next_to_nothing(home: Path) -> None:
    rows = compared("h200_x2_sweep_fast", home)
    one, coupled, apart = rows["1 ddp"], rows["2 ddp"], rows["2 separate"]
    assert (one["tok_s"], coupled["tok_s"]) == pytest.approx((17_885, 35_478), abs=1)
    assert (coupled["efficiency_pct"], coupled["efficiency_pct_ci95"]) == pytest.approx((99.18, 0.31), abs=0.01)
    # The second card is the faster one, which the first says nothing of and the separate runs do.
    assert apart["efficiency_pct"] > 100
    assert coupled["shared_machine_pct"] < 0
    assert coupled["coupling_efficiency_pct"] == pytest.approx(98.33, abs=0.01)
    assert (coupled["runs"], apart["runs"]) == (3, 2)


def test_the_eager_sweep_of_the_same_cards_has_wide_intervals(home: Path) -> None:
    rows = compared("h100_x2_sweep", home)
    assert rows["2 ddp"]["efficiency_pct"] == pytest.approx(92.9, abs=0.05)
    assert rows["2 ddp"]["efficiency_pct_ci95"] > 10
