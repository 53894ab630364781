"""When a run needs a person's eye: rules over plain figures, each with its threshold."""

from __future__ import annotations

from collections.abc import Mapping

from lorawatch.analysis.clocks import NOTABLE_SHARE
from lorawatch.run.clock_reasons import SLOWDOWN_WORDS
from lorawatch.run.live import silent_words
from lorawatch.run.records import Event
from lorawatch.text.sanitize import clean
from lorawatch.watching.frame import Alert

STRAGGLER = 1.25
"""A rank is a straggler past this multiple of the fastest rank's step time."""
VRAM_FULL = 0.97
SLOW_FACTOR = 3.0
SLOW_AT_LEAST_S = 10.0


def throttled(shares: Mapping[int, float], where: str, name: str) -> Alert | None:
    """The reason that held the clocks back for the largest share of the recent samples.

    Args:
        shares: Of the recent samples, by the reason's bit.
    """
    reason, share = max(((r, shares.get(r, 0.0)) for r in SLOWDOWN_WORDS), key=lambda pair: pair[1])
    if share < NOTABLE_SHARE:
        return None
    text = f"{name} is slowed by its {SLOWDOWN_WORDS[reason]} {100 * share:.0f}% of the time"
    return Alert("throttled", "warning", "▼", "throttled", text, where)


def vram_full(used: float | None, total: float | None, where: str, name: str) -> Alert | None:
    if used is None or not total or used < VRAM_FULL * total:
        return None
    text = f"{name} has {(total - used) / 2**30:.1f} GiB of memory left ({100 * used / total:.0f}% used)"
    return Alert("vram", "warning", "■", "VRAM full", text, where)


def stale(stale_s: float | None, where: str, name: str) -> Alert | None:
    """A reading that is too old to be believed.

    Args:
        stale_s: As `analysis.staleness.stale_age` gives it.
    """
    if stale_s is None:
        return None
    return Alert("stale", "warning", "?", f"stale {stale_s:.0f} s", f"no reading of {name} for {stale_s:.0f} s", where)


def gpu_lost(where: str, name: str) -> Alert:
    return Alert("gpu_lost", "error", "✗", "lost", f"{name} is lost: the driver no longer reaches it", where)


def stragglers(step_s: Mapping[int, float], where: Mapping[int, str]) -> list[Alert]:
    """Ranks slower than 1.25 × the fastest.

    Args:
        step_s: Median recent step time a rank.
        where: The pane's key a rank.
    """
    if len(step_s) < 2:
        return []
    fastest = min(step_s.values())
    return [
        Alert(
            "straggler", "warning", "◄", "straggler",
            f"rank {rank} takes {seconds / fastest:.2f} × the fastest rank's step", where.get(rank),
        )
        for rank, seconds in sorted(step_s.items())
        if fastest > 0 and seconds > STRAGGLER * fastest
    ]  # fmt: skip


def bad_loss(event: Event | None) -> Alert | None:
    """A loss that is no number, as the rank that saw it reported."""
    if event is None:
        return None
    return Alert("nan_loss", "error", "✗", "NaN loss", clean(event.message) or "the loss is no number")


def slow(silent_s: float | None, usual_s: float | None) -> Alert | None:
    """No step for much longer than the 99th percentile of step time."""
    if silent_s is None or usual_s is None or silent_s < max(SLOW_AT_LEAST_S, SLOW_FACTOR * usual_s):
        return None
    text = f"no step for {silent_s:.0f} s; a step usually takes at most {usual_s:.1f} s"
    return Alert("slow", "warning", "…", "no step", text)


def restarted(attempt: int) -> Alert | None:
    if attempt == 0:
        return None
    return Alert("restarted", "warning", "↻", f"attempt {attempt}", f"the ranks were restarted: attempt {attempt}")


def no_recorder(run_id: str) -> Alert:
    text = "its recorder is gone: a adopts the run, so that it is recorded on"
    return Alert("no_recorder", "error", "✗", "LOST", text)


def not_reporting(ranks: list[int], world_size: int) -> Alert | None:
    """Ranks without the callback, or with a home of their own."""
    if not ranks:
        return None
    text = silent_words(ranks, world_size)
    return Alert("partial", "warning", "!", f"{world_size - len(ranks)} of {world_size} ranks", text)


def silent(words: str) -> Alert:
    """A recorder on another host that was not heard for a while.

    Args:
        words: Whose, and for how long.
    """
    return Alert("silent", "warning", "?", "no word", f"{words}: the run may still go on there")
