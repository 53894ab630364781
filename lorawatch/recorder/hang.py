"""When is no step too long without a step, and whom do the others wait for?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lorawatch.recorder.logs import size_of
from lorawatch.recorder.workers import Workers
from lorawatch.run.directory import RunDir
from lorawatch.run.live import LiveView
from lorawatch.run.records import Event

WARN_AT_LEAST_S = 30.0
WARN_USUAL_STEPS = 5.0
END_USUAL_STEPS = 10.0
ANSWER_S = 1.0
"""How long a rank is given to write its stacks; a living one takes milliseconds, whatever it waits in."""
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
    """Of ranks that train separately, the one that has been silent longest, and since when; no other rank waits for it, so that
    the others' steps say nothing about it. None before any has taken a step.

    Args:
        seen_at: For each rank that should be stepping: when its last step was seen.
    """
    seen = [(at, rank) for rank, at in seen_at.items() if at is not None]
    if not seen:
        return None
    at, rank = min(seen)
    return rank, at


class Blame(NamedTuple):
    """Whom the others wait for, as far as there is a sign of it."""

    words: str = ""
    """Beginning with `; `, or nothing."""
    rank: int | None = None
    """Where it is a single one."""
    hint: str = ""
    """What lets it go on, while it lives; beginning with `: `, or nothing."""


def blame(
    last_step: Mapping[int, int],
    world_size: int,
    *,
    stopped: Mapping[int, int],
    mute: Sequence[int],
    separate: bool,
) -> Blame:
    """Whom the others wait for, by the surest sign that there is.

    Args:
        last_step: Each rank's.
        stopped: Ranks whose process stands still → its pid.
        mute: Ranks that did not write their stacks.
        separate: The ranks train separately, so that their steps say nothing about one another.
    """
    hint = ""
    if stopped:
        ranks, words = list(stopped), "stopped"
        hint = f": kill -CONT {' '.join(map(str, stopped.values()))} lets it go on"
    elif mute:
        ranks, words = list(mute), "frozen or waiting in the kernel (no answer to a signal)"
    elif behind := [] if separate else suspects(dict(last_step), world_size):
        ranks, words = behind, "behind the others"
    else:
        return Blame()
    who = f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"
    return Blame(f"; {who} {words}", ranks[0] if len(ranks) == 1 else None, hint)


class HangWatch:
    """Watches a run's ranks for a silence of steps: a warning with their stacks, then the run's end.

    Args:
        run: Where the stacks go.
        view: The run as its journals have it.
        hang_timeout_s: The recipe's `launch.hang_timeout_s`.
        emit: Takes the events.
    """

    def __init__(self, run: RunDir, view: LiveView, hang_timeout_s: float, emit: Callable[[Event], None]) -> None:
        self._run, self._view, self._limit_s, self._emit = run, view, hang_timeout_s, emit
        self._asked_at: float | None = None
        self._asked: dict[int, int] = {}  # rank → bytes of its stacks before
        self._warned = False
        self.verdict: str | None = None
        """Why the run was ended, or None."""

    def look(self, workers: Workers, stepping_since: float) -> None:
        """Look once; ends the run where it is time.

        Args:
            stepping_since: `time.monotonic()` of when a rank last began to step; a save before it is no silence.
        """
        view = self._view
        stepping = [r for r in view.ranks.values() if r.phase in STEPPING]
        since, what = view.last_step_seen_at, "no step"
        if view.separate and (oldest := longest_silent({r.rank: r.last_seen_at for r in stepping})):
            since, what = oldest[1], f"no step of rank {oldest[0]}"
        if since is None or not stepping or self.verdict is not None:
            return
        now = time.monotonic()
        silent = now - max(since, stepping_since)
        check = check_hang(silent, view.usual_step_s(), self._limit_s)
        if check.level == "ok":
            self._asked_at = None
            if self._warned:
                self._warned = False
                self._emit(Event(at=time.time(), kind="steps_back", message="steps come again"))
        elif self._asked_at is None:
            self._asked_at = now
            self._run.stacks.mkdir(exist_ok=True)
            before = {rank: size_of(self._stacks(rank)) for rank in workers.ranks}
            self._asked = {rank: before[rank] for rank in workers.ask_stacks()}
        elif not self._warned and now - self._asked_at >= ANSWER_S:
            self._warned = True
            who = self._blame(workers)
            silence = f"{what} for {silent:.0f} s (limit {check.limit_s:.0f} s)"
            words = f"{silence}{who.words}{who.hint}; stacks in {self._run.stacks}"
            self._emit(Event(at=time.time(), kind="hang", severity="error", rank=who.rank, message=words))
        elif self._warned and check.level == "end":
            self.verdict = (
                f"{what} for {silent:.0f} s{self._blame(workers).words}; the ranks' stacks are in {self._run.stacks}"
            )
            workers.kill()

    def _blame(self, workers: Workers) -> Blame:
        return blame(
            {r.rank: r.last.step for r in self._view.ranks.values() if r.last},
            self._view.world_size,
            stopped={rank: p.pid for rank, p in workers.ranks.items() if p.stopped()},
            mute=[rank for rank, before in self._asked.items() if size_of(self._stacks(rank)) <= before],
            separate=self._view.separate,
        )

    def _stacks(self, rank: int) -> Path:
        return self._run.stacks / f"rank-{rank}.txt"
