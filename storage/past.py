"""What the history already has of a run that is still being watched, small enough to draw at once.

A long run's journals take seconds to read; the history has most of their lines as columns. Curves come thinned to bins of
lowest and highest, the latest lines as they were written, and with them how far into each journal all this reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import (
    NOT_IN_HISTORY,
    AnyLine,
    Evaluation,
    Event,
    GpuSample,
    HostSample,
    PhaseChange,
    RankStarted,
    Step,
)
from lorawatch.storage import expressions, files
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Connection
from lorawatch.storage.schema import with_metrics
from lorawatch.system import home

BINS = 512
STEPS = 1000
EVENTS = 200
SAMPLES_S = 60
Bin = tuple[str, float, float, float]
"""Metric, unix time of its middle, lowest, highest."""


@dataclass
class Past:
    """A run up to the last time its journals were taken into the history.

    Attributes:
        offsets: Bytes taken, by journal file.
        starts: The ranks' first lines, of every attempt.
        lines: The latest lines of all other kinds, in an order in which they can be fed.
        gpu_bins: By GPU, the metrics that a pane shows, by their names in `lorawatch.run.metrics`.
        rank_bins: By rank: `tok_s`, `step_ms`, `data_wait_ms`, `loss`.
        loss_bins: The loss over all ranks.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    starts: list[RankStarted] = field(default_factory=list)
    lines: list[AnyLine] = field(default_factory=list)
    gpu_bins: dict[str, list[Bin]] = field(default_factory=dict)
    rank_bins: dict[int, list[Bin]] = field(default_factory=dict)
    loss_bins: list[Bin] = field(default_factory=list)


_SHOWN = tuple(m for m in GPU_METRICS if m.label)
_GPU = tuple(m.name for m in _SHOWN)
_GPU_ROWS = f"""
SELECT gpu_uuid, epoch(sampled_at) AS t, {", ".join(f"{m.column} AS {m.name}" for m in _SHOWN)}
FROM {{samples}} WHERE run_id = $1"""  # noqa: S608  names of the registry
_RANK = ("tok_s", "step_ms", "data_wait_ms", "loss")
_RANK_ROWS = f"""
SELECT rank, epoch(ended_at) AS t, loss, 1000 * data_wait_s AS data_wait_ms,
    CASE WHEN phase = 'train' THEN {expressions.STEP_RATE} END AS tok_s,
    CASE WHEN phase = 'train' AND duration_s > 0 THEN 1000 * duration_s END AS step_ms
FROM steps WHERE run_id = $1"""  # noqa: S608  expressions of our own
_LOSS_ROWS = f"""
SELECT epoch(max(ended_at)) AS t, {expressions.MEAN_LOSS} AS loss
FROM steps WHERE run_id = $1 GROUP BY attempt, step"""  # noqa: S608  expressions of our own
# What each GPU showed first, at its fullest, and last; a reading's last value may be older than the last sample.
_GPU_COLUMNS = tuple(m.column for m in GPU_METRICS)
_GPU_MARKS = f"""
SELECT gpu_uuid, epoch(min(sampled_at)), arg_min(energy_j, sampled_at), epoch(arg_max(sampled_at, memory_used_bytes)),
    max(memory_used_bytes), epoch(max(sampled_at)),
    {", ".join(f"arg_max({column}, sampled_at)" for column in _GPU_COLUMNS)}
FROM {{samples}} WHERE run_id = $1 GROUP BY gpu_uuid
"""  # noqa: S608  names of the registry


def read_past(run_id: str, *, deadline_s: float = 0.5) -> Past | None:
    """What the history has of this run; None where it has nothing yet.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    if files.absent() or files.gone(home.history_file()):
        return None
    with reading(deadline_s=deadline_s) as connection:
        connection.execute("BEGIN")  # one moment of the history: rows and offsets that belong together
        rows = connection.execute("SELECT file, byte_offset FROM journal_offsets WHERE run_id = ?", [run_id]).fetchall()
        if not rows:
            return None
        past = Past(offsets=dict(rows))
        past.starts += _starts(connection, run_id)
        past.lines += _steps(connection, run_id)
        past.lines += _evaluations(connection, run_id)
        past.lines += _samples(connection, run_id)
        past.lines += _events(connection, run_id)
        for gpu_uuid, middle, *extremes in connection.execute(
            _binned(_with_samples(connection, _GPU_ROWS), _GPU, "gpu_uuid"), [run_id, BINS]
        ).fetchall():
            past.gpu_bins.setdefault(gpu_uuid, []).extend(_bins(_GPU, middle, extremes))
        for rank, middle, *extremes in connection.execute(
            _binned(_RANK_ROWS, _RANK, "rank"), [run_id, BINS]
        ).fetchall():
            past.rank_bins.setdefault(rank, []).extend(_bins(_RANK, middle, extremes))
        for middle, *extremes in connection.execute(_binned(_LOSS_ROWS, ("loss",)), [run_id, BINS]).fetchall():
            past.loss_bins += _bins(("loss",), middle, extremes)
    return past


def _binned(rows: str, names: Sequence[str], key: str | None = None) -> str:
    """The question for a curve in `$2` bins: rows of (the key, a bin's middle, and for each name lowest, highest).

    Args:
        rows: The SQL of the values over their time `t`, of run `$1`.
        names: The columns that are curves.
        key: The column whose values have curves of their own.
    """
    columns = ", ".join(expressions.extremes(name) for name in names)
    own = f"{key}, " if key else ""
    return f"""
        WITH mine AS ({rows}),
        span AS (SELECT min(t) AS b, greatest(max(t) - min(t), 1e-3) / $2 AS w FROM mine),
        numbered AS (SELECT mine.*, b, w, {expressions.bin_number("t", "b", "w", "$2")} AS bin FROM mine, span)
        SELECT {own}any_value(b) + any_value(w) * (0.5 + bin) AS middle, {columns}
        FROM numbered GROUP BY {own}bin ORDER BY middle"""  # noqa: S608  names and expressions of our own


def _bins(names: tuple[str, ...], middle: float, extremes: list[float | None]) -> list[Bin]:
    bins = []
    for index, name in enumerate(names):
        low, high = extremes[2 * index], extremes[2 * index + 1]
        if low is not None and high is not None:
            bins.append((name, middle, low, high))
    return bins


def _columns(kind: type[msgspec.Struct], *, renamed: dict[str, str] | None = None) -> str:
    """The struct's fields as a select list, times as unix seconds."""
    parts = []
    for name in kind.__struct_fields__:
        column = "NULL" if name in NOT_IN_HISTORY else f'"{(renamed or {}).get(name, name)}"'
        parts.append(f"epoch({column})" if name in ("at", "sampled_at", "ended_at") else column)
    return ", ".join(parts)


def _made(kind: Any, connection: Connection, query: str, values: list[Any]) -> list[Any]:
    names = kind.__struct_fields__
    return [kind(**dict(zip(names, row, strict=True))) for row in connection.execute(query, values).fetchall()]


def _starts(connection: Connection, run_id: str) -> list[RankStarted]:
    columns = _columns(RankStarted, renamed={"at": "started_at"})
    return _made(
        RankStarted, connection,
        f"SELECT {columns} FROM ranks WHERE run_id = ? ORDER BY attempt, rank", [run_id],  # noqa: S608  fixed names
    )  # fmt: skip


def _steps(connection: Connection, run_id: str) -> list[AnyLine]:
    return _made(
        Step, connection,
        f"WITH latest AS (SELECT max(attempt) AS attempt FROM steps WHERE run_id = $1) "  # noqa: S608  fixed names
        f"SELECT {_columns(Step)} FROM steps SEMI JOIN latest USING (attempt) WHERE run_id = $1 AND step > (SELECT "
        f"max(step) FROM steps SEMI JOIN latest USING (attempt) WHERE run_id = $1) - $2 ORDER BY step, rank",
        [run_id, STEPS],
    )  # fmt: skip


def _evaluations(connection: Connection, run_id: str) -> list[AnyLine]:
    """All of them, since the lowest may be an early one."""
    return _made(
        Evaluation, connection,
        f"SELECT {_columns(Evaluation)} FROM evaluations WHERE run_id = ? ORDER BY ended_at",  # noqa: S608  fixed names
        [run_id],
    )  # fmt: skip


def _with_samples(connection: Connection, query: str) -> str:
    """The query with what to select the GPUs' samples from."""
    return query.format(samples=with_metrics(connection, "gpu_samples"))


def _samples(connection: Connection, run_id: str) -> list[AnyLine]:
    """The host's last line, and of each GPU the first, the fullest, the latest, and one with the last value of each metric."""
    lines: list[AnyLine] = []
    last: list[AnyLine] = []
    for row in connection.execute(_with_samples(connection, _GPU_MARKS), [run_id]).fetchall():
        gpu_uuid, first_at, first_energy_j, fullest_at, fullest, at, *readings = row
        lines.append(GpuSample(sampled_at=first_at, gpu_uuid=gpu_uuid, energy_j=first_energy_j))
        if fullest_at is not None:
            lines.append(GpuSample(sampled_at=fullest_at, gpu_uuid=gpu_uuid, memory_used_bytes=fullest))
        last.append(GpuSample(sampled_at=at, gpu_uuid=gpu_uuid, **dict(zip(_GPU_COLUMNS, readings, strict=True))))
    recent = (
        "sampled_at > (SELECT max(sampled_at) FROM gpu_samples WHERE run_id = $1) - to_seconds($2) ORDER BY sampled_at"
    )
    lines += _made(
        GpuSample, connection,
        _with_samples(
            connection,
            f"SELECT {_columns(GpuSample)} FROM {{samples}} WHERE run_id = $1 AND {recent}",  # noqa: S608  fixed names
        ),
        [run_id, SAMPLES_S],
    )  # fmt: skip
    lines += last
    lines += _made(
        HostSample, connection,
        f"SELECT {_columns(HostSample)} FROM {with_metrics(connection, 'host_samples')} "  # noqa: S608  fixed names
        "WHERE run_id = ? ORDER BY sampled_at DESC LIMIT 1",
        [run_id],
    )  # fmt: skip
    return lines


def _events(connection: Connection, run_id: str) -> list[AnyLine]:
    lines: list[AnyLine] = []
    phases = connection.execute(
        'SELECT epoch(max("at")), attempt, rank, arg_max(message, "at") FROM events '
        "WHERE run_id = ? AND kind = 'phase' AND rank IS NOT NULL AND attempt IS NOT NULL GROUP BY attempt, rank",
        [run_id],
    ).fetchall()
    for at, attempt, rank, message in phases:
        name, _, detail = message.partition(": ")
        lines.append(PhaseChange(at=at, attempt=attempt, rank=rank, name=name, detail=detail or None))
    rows = connection.execute(
        "SELECT epoch(\"at\"), kind, severity, message, rank, detail FROM events WHERE run_id = ? AND kind <> 'phase' "
        'ORDER BY "at" DESC LIMIT ?',
        [run_id, EVENTS],
    ).fetchall()
    for at, kind, severity, message, rank, detail in reversed(rows):
        about = msgspec.json.decode(detail, type=dict[str, object]) if detail else None
        lines.append(Event(at=at, kind=kind, severity=severity, message=message, rank=rank, detail=about))
    return lines
