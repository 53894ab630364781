"""When is no step too long without a step? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WARN_AT_LEAST_S = 30.0
WARN_USUAL_STEPS = 5.0
END_USUAL_STEPS = 10.0
# Phases in which steps are expected; loading a model or saving may take its time.
STEPPING = frozenset({"training"})


@dataclass(frozen=True)
class HangCheck:
    """The verdict at a moment: nothing, a warning with the ranks' stacks, or the end of the run."""

    level: Literal["ok", "warn", "end"]
    limit_s: float


def check_hang(silent_s: float, usual_step_s: float | None, hang_timeout_s: float) -> HangCheck:
    """Judge a silence.

    Args:
        silent_s: Seconds since any rank's last step.
        usual_step_s: 99th percentile of the run's step times; None before there are enough.
        hang_timeout_s: The recipe's `launch.hang_timeout_s`; 0 never ends a run.

    Returns:
        `warn` past max(30 s, 5 × usual), `end` past max(hang_timeout_s, 10 × usual).
    """
    usual = usual_step_s or 0.0
    warn = max(WARN_AT_LEAST_S, WARN_USUAL_STEPS * usual)
    end = max(hang_timeout_s, END_USUAL_STEPS * usual)
    if hang_timeout_s > 0 and silent_s > end:
        return HangCheck("end", end)
    return HangCheck("warn" if silent_s > warn else "ok", warn)


def suspects(last_step: dict[int, int], world_size: int) -> list[int]:
    """The ranks that are behind the others: what the others wait for. Empty where all stand at the same step."""
    steps = {rank: last_step.get(rank, 0) for rank in range(world_size)}
    furthest = max(steps.values(), default=0)
    return [rank for rank, step in steps.items() if step < furthest]


def longest_silent(seen_at: Mapping[int, float | None]) -> tuple[int, float] | None:
    """Of ranks that train separately, the one that has been silent longest, and since when; nobody waits for it, so that
    the others' steps say nothing about it. None before any has taken a step.

    Args:
        seen_at: For each rank that should be stepping: when its last step was seen.
    """
    seen = [(at, rank) for rank, at in seen_at.items() if at is not None]
    if not seen:
        return None
    at, rank = min(seen)
    return rank, at
