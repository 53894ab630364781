"""A real H100 run, from its journals through the history to what a person reads."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import journal_steps, lorawatch, sql
from history import write

from lorawatch.run.directory import RunDir
from lorawatch.run.records import Event
from lorawatch.storage.ingest import finish_run

SOURCE = Path(__file__).parents[1] / "data" / "h100_run"
RUN_ID = "0gq2zx6h"


@pytest.fixture
def recorded(lorawatch_home: Path) -> RunDir:
    shutil.copytree(SOURCE / RUN_ID, lorawatch_home / "runs" / RUN_ID)
    run = RunDir(lorawatch_home / "runs" / RUN_ID)
    finish_run(run)
    return run


def test_its_figures_stand_beside_what_a_plain_trainer_was_measured_to_do(recorded: RunDir) -> None:
    row = json.loads(lorawatch("show", RUN_ID, "--json").stdout)
    assert row["sku"] == "NVIDIA H100 80GB HBM3"
    assert (row["measured_steps"], row["tokens"]) == (59, 59 * 1024)
    # the probe of the same model, GPU and Trainer: 6,631–6,979 tok/s, 417–449 W, on a slower host
    assert 6_000 < row["tok_s"] < 9_500
    assert 400 < row["avg_power_w"] < 520
    assert row["peak_vram_bytes"] / 2**30 == pytest.approx(24.1, abs=0.1)
    assert row["mfu"] == pytest.approx(row["tok_s"] * 30.462e9 / 989.4e12, rel=0.01)
    assert row["energy_source"] == "counter"


def test_energy_is_the_counters_difference_and_agrees_with_the_power(recorded: RunDir, lorawatch_home: Path) -> None:
    ((energy, integral, disagreement, window),) = sql(
        lorawatch_home, "SELECT energy_j, energy_power_integral_j, energy_disagreement_pct, window_s FROM run_summary"
    )
    lines = [json.loads(line) for line in (recorded.journal / "host-vm.jsonl").read_text().splitlines()]
    counter = [(d["sampled_at"], d["energy_j"]) for d in lines if d["t"] == "gpu" and "energy_j" in d]
    power = [(d["sampled_at"], d["power_w"]) for d in lines if d["t"] == "gpu" and "power_w" in d]
    steps = journal_steps(recorded)
    began, ended = steps[0]["ended_at"], steps[-1]["ended_at"]
    assert window == pytest.approx(ended - began, rel=1e-3)

    def at(moment: float) -> float:
        """The counter at a moment: between two readings it grows as the power samples do."""
        (t0, e0), (t1, e1) = next((a, b) for a, b in pairwise(counter) if a[0] <= moment <= b[0])
        return e0 + (e1 - e0) * area(t0, moment) / area(t0, t1)

    def area(begin: float, end: float, cells: int = 2000) -> float:
        """Integral of the sampled power, straight lines between samples."""
        width = (end - begin) / cells
        return sum(watts(begin + (i + 0.5) * width) for i in range(cells)) * width

    def watts(moment: float) -> float:
        (t0, p0), (t1, p1) = next((a, b) for a, b in pairwise(power) if a[0] <= moment <= b[0])
        return p0 + (p1 - p0) * (moment - t0) / (t1 - t0)

    assert energy == pytest.approx(at(ended) - at(began), rel=1e-3)
    assert integral == pytest.approx(area(began, ended, 20000), rel=2e-3)
    assert disagreement < 2


def test_an_events_further_lines_stand_below_its_first(recorded: RunDir) -> None:
    at = json.loads(lorawatch("show", RUN_ID, "--json").stdout)["started_at_s"]
    write(
        recorded.rank_journal(0),
        Event(at=at + 65, kind="k", severity="warning", message="out of memory\nwhat would fit: 1"),
    )
    finish_run(recorded)
    lines = lorawatch("show", RUN_ID).stdout.splitlines()
    (first,) = [line for line in lines if "out of memory" in line]
    assert "1:05  warning" in first
    below = lines[lines.index(first) + 1]
    assert below == " " * first.index("out of memory") + "what would fit: 1"
