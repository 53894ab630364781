"""What the measured steps of a run say: window, tokens, rate, step times; of ranks that train together or separately."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorawatch.analysis.common import RankSteps, amount_within, common_window, summed_mean_step_rate, summed_rate
from lorawatch.analysis.throughput import batch_means_interval95, mean_step_rate, rate
from lorawatch.analysis.windows import STEP_JOIN_S, Span, length, union
from lorawatch.storage.engine import Connection

_FETCH = 10_000


@dataclass
class Measured:
    """The measured steps of a run as figures; what could not be had is None.

    Attributes:
        window: The time they are taken over, in order, without overlap; empty where there is none.
        count: How many there are, by their number: a step that several ranks have taken counts once.
        durations_s: Their times: of ranks that train together the slowest's of each step, else every rank's of each.
    """

    window: list[Span] = field(default_factory=list)
    durations_s: Sequence[float] = ()
    count: int = 0
    tokens: float | None = None
    nonpad_tokens: int | None = None
    label_tokens: int | None = None
    tok_s: float | None = None
    tok_s_ci95: float | None = None
    mean_step_tok_s: float | None = None


def together(connection: Connection, run_id: str) -> Measured:
    """Steps that the ranks take together: a step takes as long as its slowest rank, and none is cut.

    A step that not all ranks have reported is left out: of a run that was killed it is the last. Where no step has all
    ranks, times are those of the ranks that report, and what is summed over ranks is missing.
    """
    tokens, durations = array("d"), array("d")
    counts = _Counts(), _Counts()
    spans: list[Span] = []
    pauses = _pauses(connection, run_id)
    rows = connection.execute(
        "WITH mine AS (SELECT *, ranks >= expected_ranks AS whole FROM v_steps WHERE run_id = ? AND phase = 'train') "
        "SELECT epoch(ended_at), duration_s, tokens, nonpad_tokens, label_tokens FROM mine "
        "WHERE whole OR NOT (SELECT bool_or(whole) FROM mine) ORDER BY step",
        [run_id],
    )
    while batch := rows.fetchmany(_FETCH):
        for ended, duration, step_tokens, nonpad, labels in batch:
            tokens.append(_number(step_tokens))
            durations.append(duration)
            spans.append((ended - duration, ended))
            counts[0].add(nonpad)
            counts[1].add(labels)
        spans = union(spans, join_s=STEP_JOIN_S, pauses=pauses)
    measured = Measured(spans, durations, len(durations))
    measured.nonpad_tokens, measured.label_tokens = (c.total for c in counts)
    seconds = length(spans)
    if _complete(tokens) and seconds > 0:
        measured.tokens = sum(tokens)
        measured.tok_s = rate(measured.tokens, seconds)
        measured.tok_s_ci95 = batch_means_interval95(tokens, durations)
        measured.mean_step_tok_s = mean_step_rate(tokens, durations)
    return measured


def separately(connection: Connection, run_id: str, world_size: int) -> Measured:
    """Steps that each rank takes by itself, of the last attempt, in the time in which all ranks were computing one.

    Steps of one number on two ranks need not happen at once, and whoever ends first leaves the machine to the others:
    so the window is common to all, and a step that its edge cuts counts by its share of time.
    """
    rows = connection.execute(
        "SELECT rank, epoch(ended_at), duration_s, tokens, nonpad_tokens, label_tokens, step FROM steps "
        "WHERE run_id = $1 AND phase = 'train' AND attempt = (SELECT max(attempt) FROM steps WHERE run_id = $1) "
        "ORDER BY rank, step",
        [run_id],
    )
    columns: dict[int, tuple[array[float], ...]] = {}
    for rank, *values in _fetched(rows):
        own = columns.setdefault(rank, tuple(array("d") for _ in values))
        for column, value in zip(own, values, strict=True):
            column.append(_number(value))
    ranks = [RankSteps(c[0], c[1]) for c in columns.values()]
    window = (
        common_window(ranks, join_s=STEP_JOIN_S, pauses=_pauses(connection, run_id)) if len(ranks) == world_size else []
    )
    if not window:
        return Measured()
    tokens, nonpad, labels = ([c[i] for c in columns.values()] for i in (2, 3, 4))

    def within(amounts: list[array[float]]) -> float | None:
        if not all(_complete(a) for a in amounts):
            return None
        return sum(amount_within(r, a, window) for r, a in zip(ranks, amounts, strict=True))

    inside = [r.touching(window) for r in ranks]
    measured = Measured(
        window, array("d", (r.durations_s[i] for r, taken in zip(ranks, inside, strict=True) for i in taken))
    )
    measured.count = len({c[5][i] for c, taken in zip(columns.values(), inside, strict=True) for i in taken})
    measured.tokens = within(tokens)
    measured.nonpad_tokens, measured.label_tokens = _whole(within(nonpad)), _whole(within(labels))
    if measured.tokens is not None:
        summed = summed_rate(ranks, tokens, window)
        measured.tok_s, measured.tok_s_ci95 = summed.value, summed.ci95
        measured.mean_step_tok_s = summed_mean_step_rate(ranks, tokens, window)
    return measured


class _Counts:
    """A sum of which a part may be missing."""

    def __init__(self) -> None:
        self._sum: int | None = None
        self._whole = True

    def add(self, value: int | None) -> None:
        self._whole &= value is not None
        self._sum = (self._sum or 0) + (value or 0)

    @property
    def total(self) -> int | None:
        return self._sum if self._whole else None


def _pauses(connection: Connection, run_id: str) -> list[float]:
    """When a rank began with something else than steps; in order, seconds of the epoch."""
    rows = connection.execute(
        "SELECT epoch(\"at\") FROM events WHERE run_id = ? AND kind = 'phase' AND message <> 'training' ORDER BY \"at\"",
        [run_id],
    )
    return [at for (at,) in rows.fetchall()]


def _fetched(rows: Connection) -> Iterator[Any]:
    while batch := rows.fetchmany(_FETCH):
        yield from batch


def _number(value: float | None) -> float:
    """A missing count is NaN in an array."""
    return float("nan") if value is None else value


def _complete(values: Sequence[float]) -> bool:
    """Whether there are values, and none is missing."""
    return len(values) > 0 and all(v == v for v in values)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
