"""A run's curves, thinned in the database: each bin keeps its lowest and highest value, so that no spike is hidden.

Over time a step stands where it ended and a sample where it was taken. Over steps a step that was repeated after a restart
counts as it was computed last, and a sample belongs to the step it fell into; samples before, between and after the steps
(loading, an evaluation, a checkpoint) are on the axis of time only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorawatch.run.metrics import GPU_METRICS, Metric, Over
from lorawatch.storage import expressions, files
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Connection
from lorawatch.storage.schema import with_metrics

BINS = 500
JOIN_S = 0.05  # ends of neighbouring steps are read by several clocks; a sample in so short a gap is no pause's
Axis = Literal["time", "step"]
STEP_CURVES = ("tok_s", "loss")
_PLOTTED = tuple(m for m in GPU_METRICS if m.plot is not None)
_PLOTTED_COLUMNS = ", ".join(m.column for m in _PLOTTED)


@dataclass(frozen=True, slots=True)
class Thinned:
    """A curve in bins of equal width.

    Attributes:
        start: The first bin's left edge: unix seconds, or a step.
        width: What a bin covers, in the same unit; whole steps over steps.
        low, high: Extremes a bin, NaN where nothing was recorded.
        mean: Of the values in a bin.
    """

    start: float
    width: float
    low: list[float]
    high: list[float]
    mean: list[float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation on a run's curves: after which step, when (unix seconds), and its loss."""

    step: int
    at: float
    loss: float


@dataclass(frozen=True)
class Curves:
    """A run's curves over one axis.

    Attributes:
        axis: `time` in unix seconds, or `step`; step n covers n to n + 1.
        begin, end: The whole run on this axis, whatever part of it the curves show.
        began_at: Unix time of the run's first reading.
        steps: The last step.
        window: The part that the curves show.
        series: By rank, or under None for all ranks together, the curves by name: those of
            `lorawatch.run.metrics.PLOTS`; `loss_bad`, how many losses were NaN or infinite; and for the cursor `step`
            over time and `at` (unix seconds) over steps. What was not recorded is absent.
        evaluations: By the rank that wrote them, by step, whatever part the curves show; of ranks that train together
            rank 0 wrote them for all.
    """

    axis: Axis
    begin: float
    end: float
    began_at: float
    steps: int
    window: tuple[float, float]
    series: dict[int | None, dict[str, Thinned]] = field(default_factory=dict)
    evaluations: dict[int, list[Evaluated]] = field(default_factory=dict)


# The latest attempt's word on a step, where several attempts have taken it; `v_steps` says the same.
_LATEST = "QUALIFY attempt = max(attempt) OVER (PARTITION BY step)"
# Of ranks together a step's tok/s is missing where not all have reported it, also as in `v_steps`.
_TOGETHER = """
WITH expected AS (
    SELECT attempt, max(world_size) AS world_size FROM ranks WHERE run_id = $1 GROUP BY attempt
), mine AS (
    SELECT NULL::INTEGER AS rank, step, epoch(max(ended_at)) AS t,
        CASE WHEN max(phase) = 'train' AND count(tokens) >= coalesce(
            any_value(expected.world_size), (SELECT any_value(world_size) FROM runs WHERE run_id = $1), 1
        ) THEN {step_rate} END AS tok_s,
        {mean_loss} AS loss
    FROM steps LEFT JOIN expected USING (attempt) WHERE run_id = $1 GROUP BY attempt, step {latest}
)"""
_BY_RANK = """
WITH mine AS (
    SELECT rank, step, epoch(ended_at) AS t, loss,
        CASE WHEN phase = 'train' THEN {rank_rate} END AS tok_s
    FROM steps WHERE run_id = $1 {latest}
)"""
_STEPS = """
SELECT rank, {bin} AS bin, {tok_s}, {loss}, {others}, nullif(count(*) FILTER (NOT isfinite(loss)), 0) AS bad, bad, bad
FROM mine WHERE {x} >= $2 AND {x} < $2 + $3 * $4 GROUP BY rank, bin"""
_USED = f"""
taken AS (
    SELECT NULL::INTEGER AS rank, epoch(sampled_at) AS t, {_PLOTTED_COLUMNS} FROM {{samples}}
    WHERE run_id = $1 AND gpu_uuid IN (SELECT gpu_uuid FROM gpus WHERE run_id = $1 AND used)
)"""  # noqa: S608  names of the registry
_HELD = f"""
held AS (
    SELECT rank, arg_max(gpu_uuid, attempt) AS gpu_uuid FROM ranks WHERE run_id = $1 GROUP BY rank
), taken AS (
    SELECT rank, epoch(sampled_at) AS t, {_PLOTTED_COLUMNS}
    FROM {{samples}} JOIN held USING (gpu_uuid) WHERE run_id = $1
)"""  # noqa: S608  names of the registry
# The steps' own times: the next step to end is the one that a sample fell into, if that had begun.
_STEP_OF = """
spans AS (
    SELECT step, min(epoch(ended_at) - duration_s) AS began, max(epoch(ended_at)) AS ended
    FROM steps WHERE run_id = $1 GROUP BY attempt, step {latest}
), mine AS (
    SELECT taken.*, step FROM taken ASOF JOIN spans ON taken.t <= spans.ended WHERE taken.t > began - {join}
)"""
_SAMPLES = """
SELECT rank, {bin} AS bin, {plotted}
FROM {mine} WHERE {x} >= $2 AND {x} < $2 + $3 * $4 GROUP BY rank, bin"""


_EVALUATIONS = """
SELECT rank, step, epoch(ended_at), loss FROM evaluations WHERE run_id = ? AND isfinite(loss)
QUALIFY attempt = max(attempt) OVER (PARTITION BY rank, step) ORDER BY rank, step"""


def run_curves(
    run_id: str,
    *,
    axis: Axis = "time",
    each_rank: bool = False,
    window: tuple[float, float] | None = None,
    bins: int = BINS,
    deadline_s: float = 0.5,
) -> Curves | None:
    """The curves of all ranks together, or of each; None where the history has neither steps nor samples of the run.

    Together, `tok_s` is the ranks' sum and `loss` their mean over label tokens; power, memory and temperature go from the
    lowest to the highest of the GPUs that the run used. A rank's power is that of the GPU it computed on.

    Args:
        window: Only this part of the axis, in the bins' full number; None for the whole run.
        bins: How many at most.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    if files.absent():
        return None
    with reading(deadline_s=deadline_s) as connection:
        extent = _extent(connection, run_id, axis)
        if extent is None:
            return None
        begin, end, began_at, steps, repeated = extent
        low, high = window or (begin, end)
        width = max((high - low) / bins, 1e-6)
        if axis == "step":
            low, width = float(math.floor(low)), float(max(math.ceil((high - math.floor(low)) / bins), 1))
        count = max(min(math.ceil((high - low) / width - 1e-9), bins), 1)
        values = [run_id, low, width, count]
        x, other = ("t", "step") if axis == "time" else ("step", "t")
        fill = {"latest": _LATEST if repeated and axis == "step" else "", "x": x,
                "samples": with_metrics(connection, "gpu_samples"), "join": JOIN_S,
                "mine": "taken" if axis == "time" else "mine", **_expressions(x, other)}  # fmt: skip
        step_rows = connection.execute(((_BY_RANK if each_rank else _TOGETHER) + _STEPS).format(**fill), values)
        curves = Curves(axis, begin, end, began_at, steps, (low, low + width * count))
        _take(
            curves,
            step_rows.fetchall(),
            (*STEP_CURVES, "step" if axis == "time" else "at", "loss_bad"),
            low,
            width,
            count,
        )
        before = "WITH" + (_HELD if each_rank else _USED) + ("," + _STEP_OF if axis == "step" else "")
        sample_rows = connection.execute((before + _SAMPLES).format(**fill), values)
        _take(curves, sample_rows.fetchall(), [m.name for m in _PLOTTED], low, width, count)
        for rank, *evaluation in connection.execute(_EVALUATIONS, [run_id]).fetchall():
            curves.evaluations.setdefault(rank, []).append(Evaluated(*evaluation))
    return curves


def _expressions(place: str, other: str) -> dict[str, str]:
    """What the questions are filled in with: the figures of a step and of a bin, over one axis and the other's column."""
    return {
        "bin": expressions.bin_number(place, "$2", "$3", "$4"),
        "step_rate": expressions.rate("sum(tokens)", "max(duration_s)"),
        "rank_rate": expressions.STEP_RATE,
        "mean_loss": expressions.MEAN_LOSS,
        "tok_s": expressions.spread("tok_s"),
        "loss": expressions.spread("loss", "FILTER (isfinite(loss))"),
        "others": expressions.spread(other),
        "plotted": ", ".join(expressions.spread(m.column) for m in _PLOTTED),
    }


def _extent(connection: Connection, run_id: str, axis: Axis) -> tuple[float, float, float, int, bool] | None:
    """Begin, end, time of the first reading, last step, and whether steps were repeated by a later attempt."""
    first, last, began, ended, repeated = (
        connection.execute(
            "SELECT min(step), max(step), epoch(min(ended_at)), epoch(max(ended_at)), min(attempt) <> max(attempt) "
            "FROM steps WHERE run_id = ?",
            [run_id],
        ).fetchone()
        or (None,) * 5
    )
    sampled, sampled_last = connection.execute(
        "SELECT epoch(min(sampled_at)), epoch(max(sampled_at)) FROM gpu_samples WHERE run_id = ?", [run_id]
    ).fetchone() or (None, None)
    (evaluated,) = connection.execute(
        "SELECT epoch(max(ended_at)) FROM evaluations WHERE run_id = ?", [run_id]
    ).fetchone() or (None,)
    begins = [t for t in (began, sampled) if t is not None]
    ends = [t for t in (ended, sampled_last, evaluated) if t is not None]
    if not begins or (axis == "step" and first is None):
        return None
    if axis == "step":
        return float(first), float(last + 1), min(begins), last, bool(repeated)
    return min(begins), max(ends) + 1e-3, min(begins), last or 0, bool(repeated)  # an end lies behind its last reading


def _take(
    curves: Curves, rows: list[tuple[Any, ...]], names: Sequence[str], start: float, width: float, count: int
) -> None:
    """Put rows of (rank, bin, and for each name lowest, highest, mean) into `curves`."""
    for rank, number, *values in rows:
        by_name = curves.series.setdefault(rank, {})
        for index, name in enumerate(names):
            low, high, mean = values[3 * index : 3 * index + 3]
            if low is None:
                continue
            curve = by_name.get(name)
            if curve is None:
                curve = by_name[name] = Thinned(start, width, *([math.nan] * count for _ in range(3)))
            curve.low[number], curve.high[number], curve.mean[number] = float(low), float(high), float(mean)


@dataclass(frozen=True, slots=True)
class RankRow:
    """One rank beside the others; what was not recorded is None.

    Attributes:
        steps: The last step it took.
        tok_s: Its tokens over its measured steps' time.
        step_p50_s, step_p95_s: Of its measured steps.
        data_wait_s: Mean of all its steps.
        memory_bytes: The most that was in use on its GPU; without such a reading, what torch had reserved at most.
        gpu_index, sku: The GPU it computed on.
        readings: Of that GPU, from its first measured step's begin to its last step's end: each metric by its name, read as
            `over` in `lorawatch.run.metrics` says.
    """

    rank: int
    steps: int
    tok_s: float | None
    step_p50_s: float | None
    step_p95_s: float | None
    data_wait_s: float | None
    memory_bytes: int | None
    gpu_index: int | None
    sku: str | None
    readings: dict[str, float | None]


# What is read of a GPU over a window; of its memory, `memory_bytes` speaks for the whole run.
_READ = tuple(m for m in GPU_METRICS if m.over is not None and m.column != "memory_used_bytes")


def _over(metric: Metric, condition: str) -> str:
    """A metric read over the samples of a condition, in SQL."""
    column = metric.column
    read: dict[Over, str] = {
        "mean": f"avg({column})",
        "max": f"max({column})",
        "last": f"arg_max({column}, sampled_at)",
    }
    return f"{read[metric.over or 'last']} FILTER ({condition}) AS {column}"


_IN_STEPS = "epoch(sampled_at) BETWEEN began AND ended"
_RANKS = f"""
WITH measured AS (
    SELECT rank, {expressions.rate(expressions.whole_sum("tokens"), "sum(duration_s)")} AS tok_s,
        {expressions.percentiles("duration_s", 0.5, 0.95)} AS step_s, min(epoch(ended_at) - duration_s) AS began
    FROM (SELECT * FROM steps WHERE run_id = $1 {_LATEST}) WHERE phase = 'train' GROUP BY rank
), own AS (
    SELECT rank, max(step) AS steps, any_value(tok_s) AS tok_s, any_value(step_s) AS step_s, avg(data_wait_s) AS wait_s,
        max(memory_reserved_bytes) AS reserved,
        any_value(began) AS began, max(epoch(ended_at)) AS ended
    FROM steps LEFT JOIN measured USING (rank) WHERE run_id = $1 GROUP BY rank
), held AS (
    SELECT rank, arg_max(gpu_uuid, attempt) AS gpu_uuid FROM ranks WHERE run_id = $1 GROUP BY rank
), sampled AS (
    SELECT rank, max(memory_used_bytes) AS used, {", ".join(_over(m, _IN_STEPS) for m in _READ)}
    FROM {{samples}} JOIN held USING (gpu_uuid) JOIN own USING (rank) WHERE run_id = $1 GROUP BY rank
), cards AS (
    SELECT gpu_uuid, any_value(gpu_index) AS gpu_index, any_value(sku) AS sku FROM gpus WHERE run_id = $1 GROUP BY gpu_uuid
)
SELECT rank, steps, tok_s, step_s[1], step_s[2], wait_s, coalesce(used, reserved), gpu_index, sku,
    {", ".join(m.column for m in _READ)}
FROM own LEFT JOIN held USING (rank) LEFT JOIN sampled USING (rank) LEFT JOIN cards USING (gpu_uuid) ORDER BY rank
"""  # noqa: S608  names of the registry


def run_ranks(run_id: str, *, deadline_s: float = 0.5) -> list[RankRow]:
    """The ranks that have taken a step, in order.

    Raises:
        HistoryBusy, HistoryError: As `run_curves`.
    """
    if files.absent():
        return []
    with reading(deadline_s=deadline_s) as connection:
        query = _RANKS.format(samples=with_metrics(connection, "gpu_samples"))
        rows = connection.execute(query, [run_id]).fetchall()
    names, facts = [m.name for m in _READ], -len(_READ)
    return [RankRow(*(*row[:facts], dict(zip(names, row[facts:], strict=True)))) for row in rows]
