"""The memory estimate against what an H100 was measured to need, configuration by configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorawatch.analysis.memory import MemoryEstimate, Workload, estimate, verdict
from lorawatch.analysis.shape import LINEARS, LoraShape, ModelShape

MEASURED = json.loads((Path(__file__).parents[1] / "data" / "h100_memory.json").read_text(encoding="utf-8"))
ROWS = MEASURED["measured"]


def estimated(row: dict[str, Any]) -> MemoryEstimate:
    return estimate(
        Workload(
            ModelShape.from_config(MEASURED["models"][row["model"]]),
            LoraShape(row["rank"], ("q_proj", "v_proj") if row["targets"] == "q,v" else LINEARS),
            batch=row["batch"],
            sequence_length=row["length"],
            dtype_bytes=row.get("dtype_bytes", 2),
            gradient_checkpointing=row.get("checkpointing", False),
            gradient_accumulation=row.get("accumulation", 1),
            world_size=row.get("ranks", 1),
            padded=row.get("padded", False),
        )
    )


def test_what_was_measured_is_there() -> None:
    seen = [row["seen"] for row in ROWS]
    assert (seen.count("fits"), seen.count("out of memory")) == (29, 2)
    assert len({row["title"] for row in ROWS}) == 31


@pytest.mark.parametrize("row", [r for r in ROWS if r["seen"] == "fits"], ids=lambda row: row["title"])
def test_memory_is_within_five_percent_of_what_was_measured(row: dict[str, Any]) -> None:
    needed = estimated(row)
    assert needed.allocated_bytes == pytest.approx(row["allocated"], rel=0.01)
    assert needed.reserved_bytes == pytest.approx(row["reserved"], rel=0.05)
    assert needed.device_bytes == pytest.approx(row["nvml"], rel=0.05)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["title"])
def test_a_run_that_was_seen_to_fit_fits_and_one_that_ran_out_of_memory_does_not(row: dict[str, Any]) -> None:
    word = {"fits": "fits", "out of memory": "does not fit"}[row["seen"]]
    assert verdict(estimated(row), MEASURED["memory_total_bytes"]).verdict == word
