"""The command line's queries: small ones, each one short read, answered as plain data.

Times are unix seconds in keys that end in `_s`. A history that does not exist yet has no runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lorawatch.errors import RunNotFound
from lorawatch.storage import files
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Connection
from lorawatch.storage.workloads import workload
from lorawatch.system import home

_LIST = (
    "run_id, name, state, failure, sku, gpu_count, world_size, device, coupling, steps, steps_total, tok_s, tok_s_ci95, "
    "tok_per_j, avg_power_w, final_loss, peak_vram_bytes, duration_s, reporting_ranks, "
    "epoch(created_at) AS created_at_s, sweep_id, tags"
)


def list_runs(
    *,
    limit: int | None = 20,
    state: str | None = None,
    name: str | None = None,
    tag: str | None = None,
    deadline_s: float = 2.0,
) -> list[dict[str, Any]]:
    """Runs, latest first, with their main figures.

    Args:
        limit: How many at most; None for all.
        state, name, tag: Only runs with these.
        deadline_s: How long to wait for a writer to leave the history.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    wanted = [
        (condition, value)
        for condition, value in (("state = ?", state), ("name = ?", name), ("list_contains(tags, ?)", tag))
        if value is not None
    ]
    where = " AND ".join(condition for condition, _ in wanted) or "true"
    end = "" if limit is None else f" LIMIT {int(limit)}"
    return _rows(
        f"SELECT {_LIST} FROM v_runs WHERE {where} ORDER BY run_id DESC{end}",  # noqa: S608  values are parameters
        [value for _, value in wanted],
        deadline_s,
    )


def run_figures(run_id: str, *, deadline_s: float = 2.0) -> dict[str, Any] | None:
    """Everything the history has of a run in one row: facts, state, summary; None where it lacks the run.

    Keys are the columns of `v_runs` and `run_summary`; beside them `started_at_s`, `ended_at_s`, `created_at_s`,
    `broken_lines` and `broken_files` (journal lines that were stepped over, and the files that have them), and `versions`,
    one line for people. `tok_s_per_gpu` is per rank where the run had no GPU.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    rows = _rows(
        "SELECT v.* EXCLUDE (created_at, started_at, ended_at), "
        "s.* EXCLUDE (run_id, model, sku, gpu_count, world_size, coupling, measured_steps, tok_s, tok_s_ci95, mean_step_tok_s, "
        "tok_s_per_gpu, step_p50_s, step_p95_s, avg_power_w, avg_power_all_gpus_w, energy_j, energy_source, "
        "energy_disagreement_pct, tok_per_j, peak_vram_bytes, throttled_share, power_capped_share, mfu, tokens, window_s, "
        "window_of, reporting_ranks, final_loss), coalesce(j.broken_lines, 0) AS broken_lines, j.broken_files, "
        "epoch(v.created_at) AS created_at_s, epoch(v.started_at) AS started_at_s, epoch(v.ended_at) AS ended_at_s "
        "FROM v_runs AS v LEFT JOIN run_summary AS s ON s.run_id = v.run_id "
        "LEFT JOIN (SELECT run_id, sum(broken_lines)::BIGINT AS broken_lines, list(file ORDER BY file) AS broken_files "
        "FROM journal_offsets WHERE broken_lines > 0 GROUP BY run_id) AS j ON j.run_id = v.run_id WHERE v.run_id = ?",
        [run_id],
        deadline_s,
        run_id,
    )
    if not rows:
        return None
    row = rows[0]
    versions = (("lorawatch", "lorawatch_version"), ("torch", "torch_version"), ("driver", "driver_version"))
    row["versions"] = ", ".join(f"{word} {row[key]}" for word, key in versions if row[key]) or None
    return row


def run_events(run_id: str, limit: int = 20, *, deadline_s: float = 2.0) -> list[dict[str, Any]]:
    """A run's latest events, in order of time: `at_s`, `kind`, `severity`, `attempt`, `ranks`, `message`.

    A phase that several ranks report is one event of theirs, from when the first was in it. What each evaluation and each
    checkpoint brings is left out (`run_evaluations` has the former, an event of its own the latter), unless it is the last
    that a rank reported: a run may have ended in it.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    return _rows(
        """
        WITH reported AS (
            SELECT epoch("at") AS at_s, kind, severity, attempt, rank, message, kind = 'phase' AS phase,
                row_number() OVER (PARTITION BY kind, message, attempt, rank ORDER BY "at") AS nth,
                "at" = max("at") OVER (PARTITION BY kind, attempt, rank) AS latest
            FROM events WHERE run_id = ?
        )
        SELECT * FROM (
            SELECT min(at_s) AS at_s, kind, severity, attempt,
                coalesce(list(rank ORDER BY rank) FILTER (rank IS NOT NULL), []) AS ranks, message
            FROM reported
            WHERE NOT phase OR CASE WHEN message = 'training' THEN nth = 1
                WHEN starts_with(message, 'evaluating') OR message = 'saving: checkpoint' THEN latest ELSE true END
            GROUP BY kind, severity, attempt, message, nth, CASE WHEN NOT phase THEN rank END
            ORDER BY min(at_s) DESC LIMIT ?
        ) ORDER BY at_s
        """,
        [run_id, limit],
        deadline_s,
        run_id,
    )


def run_evaluations(run_id: str, *, deadline_s: float = 2.0) -> list[dict[str, Any]]:
    """A run's evaluations by step: `step`, `loss` (None where it was no number), `best`, `label_tokens`, `duration_s`,
    `attempt`, `ended_at_s`.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    return _rows(
        "SELECT step, loss, best, label_tokens, duration_s, attempt, epoch(ended_at) AS ended_at_s FROM v_evaluations "
        "WHERE run_id = ? ORDER BY step",
        [run_id],
        deadline_s,
        run_id,
    )


def step_counts(run_id: str, *, deadline_s: float = 2.0) -> dict[tuple[int, int], int]:
    """How many step lines the history has of each rank of each attempt, by (attempt, rank).

    Compared with the count that the ranks report (`ExitRecord.steps_made`), it shows what was lost on the way: a line that
    could not be written, or that was broken. Ranks without a line are not in it.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    rows = _rows(
        "SELECT attempt, rank, count(*) AS lines FROM steps WHERE run_id = ? GROUP BY attempt, rank ORDER BY attempt, rank",
        [run_id],
        deadline_s,
        run_id,
    )
    return {(row["attempt"], row["rank"]): row["lines"] for row in rows}


def find_run(name: str) -> str | None:
    """The id that is meant by an id, an unambiguous beginning or end of one, `last`, or a run's name (the latest); None for
    an empty word, and where there is none.

    Raises:
        RunNotFound: It fits several runs.
        HistoryBusy, HistoryError: As `list_runs`.
    """
    if not name.strip():
        return None
    if name == "last":
        latest = _rows("SELECT max(run_id) AS run_id FROM runs", [])
        return latest[0]["run_id"] if latest else None
    rows = _rows(
        "SELECT run_id, run_id = $1 AS exact, starts_with(run_id, $1) OR ends_with(run_id, $1) AS part FROM runs "
        "WHERE exact OR part OR name = $1 ORDER BY run_id DESC",
        [name],
    )
    for row in rows:
        if row["exact"]:
            return name
    parts: list[str] = [row["run_id"] for row in rows if row["part"]]
    if len(parts) > 1:
        raise RunNotFound(f"run {name!r} fits {len(parts)} runs: {', '.join(parts[:5])}", hint="type more of the id")
    if parts:
        return parts[0]
    return rows[0]["run_id"] if rows else None


def distinct_recipes(limit: int = 200, *, deadline_s: float = 2.0) -> list[dict[str, Any]]:
    """Every recipe of the history once, the latest used first; where it ran (`launch.gpus`) makes no other recipe.

    Keys: `recipe`, plain data as the latest run had it; `run_id` of that run; `runs`, how many there were.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    rows = _rows(
        "SELECT arg_max(recipe, run_id) AS recipe, max(run_id) AS run_id, count(*) AS runs FROM runs "
        "WHERE recipe IS NOT NULL AND NOT coalesce(own_command, false) "
        """GROUP BY json_merge_patch(recipe, '{"launch": {"gpus": null}}') ORDER BY run_id DESC LIMIT ?""",
        [limit],
        deadline_s,
    )
    return [{**row, "recipe": msgspec.json.decode(row["recipe"])} for row in rows]


def measured(recipe: Mapping[str, Any], sku: str | None, *, deadline_s: float = 2.0) -> list[dict[str, Any]]:
    """What completed runs of the same workload reached on this SKU, a row a number of ranks, fewest first.

    The workload is what a step computes: model, adapter, data and batch; a recipe of another name may have it too.

    Args:
        recipe: Plain data, complete.
        sku: The GPU model; None for ranks on the CPU.

    Returns:
        Rows with `ranks`, `runs`, `tok_s`, `tok_s_ci95` (None where several runs are averaged), `peak_vram_bytes`.

    Raises:
        HistoryBusy, HistoryError: As `list_runs`.
    """
    coupling = "separate" if (recipe.get("launch") or {}).get("strategy") == "separate" else "ddp"
    return _rows(
        "SELECT ranks, runs, tok_s, tok_s_ci95, peak_vram_bytes FROM v_scaling "
        "WHERE workload = ? AND sku = ? AND coupling = ? AND tok_s > 0 ORDER BY ranks",
        [workload(recipe), sku or "CPU", coupling],
        deadline_s,
    )


def _rows(
    query: str, values: Sequence[Any], deadline_s: float = 2.0, run_id: str | None = None
) -> list[dict[str, Any]]:
    """The rows by column.

    Args:
        run_id: A question about one run: a history that was damaged and is not whole again can answer it once it has
            that run.
    """
    if files.absent():
        return []
    if run_id is not None and files.noted(home.history_file()):
        with reading(deadline_s=deadline_s, partial=True) as connection:
            if connection.execute("SELECT 1 FROM runs WHERE run_id = ?", [run_id]).fetchone():
                return _answer(connection, query, values)
    with reading(deadline_s=deadline_s) as connection:
        return _answer(connection, query, values)


def _answer(connection: Connection, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(query, list(values))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
