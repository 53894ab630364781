"""The figures of a run as a whole; after its end as the history has them: the same that `lorawatch show` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorawatch.errors import HistoryError

FiguresOf = Literal["recent", "steps", "run"]
"""What a run's figures are of: its recent steps and everything recorded so far, its measured steps, or, where none was
measured, the whole run."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A run's figures; a missing one is None.

    Attributes:
        figures_of: What power and energy are of.
        tok_s: Tokens a second of all ranks over the measured steps.
        tok_per_j: Tokens a joule of the used GPUs.
        power_w, power_all_w: Mean watts of the used GPUs, and of all GPUs of the host.
        energy_j, energy_all_j: Joules of the same GPUs over the same time.
        mfu: 0 to 1.
        loss: Of the last step.
    """

    figures_of: FiguresOf
    tok_s: float | None = None
    tok_per_j: float | None = None
    power_w: float | None = None
    power_all_w: float | None = None
    energy_j: float | None = None
    energy_all_j: float | None = None
    mfu: float | None = None
    loss: float | None = None


def final_of(row: dict[str, Any] | None) -> RunFigures | None:
    """The final figures in a run's row.

    Args:
        row: As `storage.queries.run_figures` gives it.

    Returns:
        None where the run has no summary yet.
    """
    if row is None or row.get("window_of") is None:
        return None
    return RunFigures(
        figures_of="steps" if row["window_of"] == "steps" else "run",
        tok_s=row["tok_s"],
        tok_per_j=row["tok_per_j"],
        power_w=row["avg_power_w"],
        power_all_w=row["avg_power_all_gpus_w"],
        energy_j=row["energy_j"],
        energy_all_j=row["energy_all_gpus_j"],
        mfu=row["mfu"],
        loss=row["final_loss"],
    )


def read_final(run_id: str, *, deadline_s: float = 0.2) -> RunFigures | None:
    """The final figures of a run from the history; None where it does not have them, or cannot be read now."""
    from lorawatch.storage.queries import run_figures

    try:
        return final_of(run_figures(run_id, deadline_s=deadline_s))
    except HistoryError:
        return None
