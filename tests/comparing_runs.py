"""Runs and configurations with round figures, for the tests of comparisons."""

from __future__ import annotations

from typing import Any

from lorawatch.comparing.comparison import compare
from lorawatch.comparing.configuration import Configuration, measured
from lorawatch.comparing.rows import Comparison, Row
from lorawatch.recipe import loading
from lorawatch.storage.configurations import RunSummary

EXXACT = loading.load("exxact-8b").to_dict()
PRO_4500 = "NVIDIA RTX PRO 4500 Blackwell"
PRO_5000 = "NVIDIA RTX PRO 5000 Blackwell"
_count = iter(range(10_000))


def a_run(ranks: int = 1, tok_s: float | None = 1000.0, ci95: float | None = 10.0, **more: Any) -> RunSummary:
    """A completed run of the workload `w` on RTX PRO 4500s, 100 W each; the later one is the newer one."""
    number = next(_count)
    values: dict[str, Any] = {
        "run_id": f"r{number}", "name": "exxact-8b", "state": "completed", "failure": None, "own_command": False, "host": "h",
        "tags": (), "created_at_s": 1e9 + number, "steps": 60, "steps_total": 60, "torch_version": "2.13.0",
        "driver_version": "580.65", "workload": "w", "model": "m", "sku": PRO_4500, "gpu_count": ranks, "ranks": ranks,
        "coupling": "ddp", "tok_s": tok_s, "tok_s_ci95": ci95, "mean_step_tok_s": tok_s, "step_p50_s": 0.5, "window_s": 3600.0,
        "avg_power_w": 100.0 * ranks, "avg_power_all_gpus_w": 100.0 * ranks,
        "tok_per_j": None if tok_s is None else tok_s / (100.0 * ranks),
        "tok_per_j_all": None if tok_s is None else tok_s / (100.0 * ranks), "energy_source": "counter",
        "peak_vram_bytes": 25 * 2**30, "throttled_share": 0.0, "mfu": 0.25, "mfu_plausible": True, "measured_steps": 59,
        "final_loss": 1.5, "sweep_id": None, "power_limit_w": 200.0 * ranks,
    }  # fmt: skip
    return RunSummary(**{**values, **more})


def configurations(
    *runs: RunSummary, unfinished: bool = False, recipes: dict[str, Any] | None = None
) -> list[Configuration]:
    """Runs as configurations, of the published benchmark's work unless their workload has another recipe."""
    return measured(runs, {"w": EXXACT, **(recipes or {})}, unfinished=unfinished)[0]


def compared(*runs: RunSummary, **more: Any) -> Comparison:
    return compare(configurations(*runs), **more)


def row(comparison: Comparison, label: str, provenance: str = "measured") -> Row:
    """The only row of a label and origin."""
    (found,) = (
        r for r in comparison.rows
        if r.configuration.label == label and r.configuration.provenance == provenance
    )  # fmt: skip
    return found
