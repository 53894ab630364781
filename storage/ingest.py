"""From the journals into the history: each complete line exactly once.

A batch's rows and the journal offsets behind them are one transaction. Whoever dies in between leaves the history as it
was, and the next one starts from the offsets that are in it.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lorawatch import paths
from lorawatch.errors import HistoryError
from lorawatch.masking import mask_arguments
from lorawatch.rundir import ENDED, RunDir, RunInfo, RunState
from lorawatch.sanitize import clean, cleaned
from lorawatch.storage.bulk import Loader, Position
from lorawatch.storage.connection import writing
from lorawatch.storage.engine import Connection, Error

# Bytes of journal in one transaction. At this size most rows go straight to the file's row groups, past the log, which is
# the fastest and takes no more memory than a third of it; the recorder's own cycles are a thousandth of it.
BATCH_BYTES = 48 << 20


@dataclass(frozen=True)
class IngestReport:
    """What one call brought in.

    Attributes:
        rows: Rows inserted.
        broken_lines: Lines stepped over.
        byte_count: Journal bytes taken over.
        complete: Whether everything that was there is in; False where the deadline came first.
        seconds: Wall time, waiting included.
    """

    rows: int
    broken_lines: int
    byte_count: int
    complete: bool
    seconds: float


def ingest_run(run: RunDir, *, deadline_s: float = 2.0, history: Path | None = None) -> IngestReport:
    """Bring a run's new journal lines, its facts and its state into the history.

    Args:
        deadline_s: How long to wait for a history that is held; a longer backlog also stops there, at a whole batch.
        history: The history file; default: the home's.

    Raises:
        HistoryBusy: Others held the history; the lines wait in the journals.
        HistoryError: The history cannot be written.
    """
    began = time.monotonic()
    with writing(history, deadline_s=deadline_s) as connection:
        return _take(connection, run, began, time.monotonic() + deadline_s)


def finish_run(run: RunDir, *, deadline_s: float = 2.0, history: Path | None = None) -> IngestReport:
    """Bring in all of an ended run, compute its summary, and take it off the list of open runs.

    A run that has not ended yet is only ingested.

    Raises:
        HistoryBusy, HistoryError: As `ingest_run`; the run stays open.
    """
    began = time.monotonic()
    rows = broken = taken = 0
    while True:
        with writing(history, deadline_s=deadline_s) as connection:
            # in turns, so that other runs' recorders get their moment during a long backlog
            report = _take(connection, run, began, time.monotonic() + 1.0)
            rows += report.rows
            broken += report.broken_lines
            taken += report.byte_count
            if report.complete:
                ended = _state(run).state in ENDED
                if ended:
                    from lorawatch.storage.summary import summarize

                    summarize(connection, run.run_id)
                break
    if ended and history is None:
        (paths.open_runs_folder() / run.run_id).unlink(missing_ok=True)
    return IngestReport(rows, broken, taken, True, time.monotonic() - began)


def rebuild(target: Path) -> int:
    """Make a history from all run directories of the home. Returns the number of runs.

    Raises:
        HistoryError: The target exists, or cannot be written.
    """
    if target.exists():
        raise HistoryError(f"{target} exists", hint="name a file that does not exist")
    folder = paths.runs_folder()
    runs = (
        [RunDir(root) for root in sorted(folder.iterdir()) if (root / "run.json").is_file()] if folder.is_dir() else []
    )
    for run in runs:
        finish_run(run, history=target)
    return len(runs)


def _take(connection: Connection, run: RunDir, began: float, stop_at: float) -> IngestReport:
    """Batches until the journals' ends or `stop_at`, each a transaction."""
    positions = {
        file: Position(byte_offset, lines, broken)
        for file, byte_offset, lines, broken in connection.execute(
            "SELECT file, byte_offset, lines, broken_lines FROM journal_offsets WHERE run_id = ?", [run.run_id]
        ).fetchall()
    }
    # The state before the journals: what the state tells (ended, how many steps) must not be ahead of the rows.
    facts = _facts(run)
    rows = broken = taken = 0
    careful = False
    with Loader() as loader:
        while True:
            batch = loader.read(run, positions, BATCH_BYTES, careful=careful)
            connection.execute("BEGIN")
            try:
                inserted, refused = loader.insert(connection, run.run_id, batch, careful=careful)
                if refused and batch.positions:  # which file it came from is not known; the run's count is what matters
                    next(iter(batch.positions.values())).broken_lines += refused
                _write_offsets(connection, run.run_id, batch.positions)
                _write_facts(connection, run.run_id, facts)
                connection.execute("COMMIT")
            except BaseException as error:
                _roll_back(connection)
                if isinstance(error, Error) and not careful and _is_about_data(error):
                    careful = True
                    continue
                raise
            careful = False
            before = sum(p.broken_lines for n, p in positions.items() if n in batch.positions)
            rows += inserted
            broken += sum(p.broken_lines for p in batch.positions.values()) - before
            taken += batch.byte_count
            positions.update(batch.positions)
            if batch.complete or time.monotonic() >= stop_at:
                return IngestReport(rows, broken, taken, batch.complete, time.monotonic() - began)


def _is_about_data(error: Error) -> bool:
    """Whether the batch's content is to blame, not the disk or the file."""
    return type(error).__name__ in ("InvalidInputException", "ConversionException", "OutOfRangeException", "DataError")


def _roll_back(connection: Connection) -> None:
    try:
        connection.execute("ROLLBACK")
    except Error:  # the failure has already ended the transaction
        return


def _write_offsets(connection: Connection, run_id: str, new: dict[str, Position]) -> None:
    if not new:
        return
    files = list(new)
    connection.execute(
        "DELETE FROM journal_offsets WHERE run_id = ? AND file IN (SELECT unnest(?::VARCHAR[]))", [run_id, files]
    )
    at = list(new.values())
    connection.execute(
        "INSERT INTO journal_offsets (run_id, file, byte_offset, lines, broken_lines) "
        "SELECT $1, unnest($2::VARCHAR[]), unnest($3::BIGINT[]), unnest($4::BIGINT[]), unnest($5::BIGINT[])",
        [run_id, files, [p.byte_offset for p in at], [p.lines for p in at], [p.broken_lines for p in at]],
    )


def _state(run: RunDir) -> RunState:
    try:
        return run.state()
    except (OSError, msgspec.MsgspecError):
        return RunState()


def _facts(run: RunDir) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The run's row of `runs` by column, times as unix seconds, and its rows of `gpus`."""
    state = _state(run)
    try:
        info = run.info()
    except (OSError, msgspec.MsgspecError):  # its journals are still worth having
        info = RunInfo(
            run_id=run.run_id, name="?", created_at=run.root.stat().st_mtime, host="?", user="?", world_size=0
        )
    values: dict[str, Any] = {
        "name": info.name,
        "state": state.state,
        "failure": state.failure,
        "message": state.message,
        "exit_code": state.exit_code,
        "recipe": msgspec.json.encode(cleaned(info.recipe)).decode() if info.recipe is not None else None,
        "command": shlex.join(mask_arguments(info.command)) if info.command else None,
        "own_command": info.own_command,
        "host": info.host,
        "user": info.user,
        "cwd": info.cwd,
        "device": info.device,
        "world_size": info.world_size,
        "sample_hz": info.sample_hz,
        "created_at": info.created_at,
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "attempts": state.attempt + 1 if state.started_at is not None else 0,
        "step": state.step,
        "steps_total": state.steps_total,
        "sweep_id": info.sweep_id,
        "tags": info.tags,
        "lorawatch_version": info.lorawatch_version,
        "torch_version": info.torch_version,
        "driver_version": info.driver_version,
        "git_commit": info.git_commit,
    }
    gpus = [
        (clean(g.host), g.gpu_index, clean(g.gpu_uuid), clean(g.sku), g.memory_total_bytes, g.power_limit_w, g.used)
        for g in info.gpus
    ]
    return {name: cleaned(value) for name, value in values.items()}, gpus


def _write_facts(connection: Connection, run_id: str, facts: tuple[dict[str, Any], list[tuple[Any, ...]]]) -> None:
    values, gpus = facts
    connection.execute("DELETE FROM runs WHERE run_id = ?", [run_id])
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("make_timestamptz((? * 1e6)::BIGINT)" if name.endswith("_at") else "?" for name in values)
    connection.execute(
        f"INSERT INTO runs (run_id, {names}) VALUES (?, {marks})",  # noqa: S608  names of this module
        [run_id, *values.values()],
    )
    known = connection.execute(
        "SELECT host, gpu_index, gpu_uuid, sku, memory_total_bytes, power_limit_w, used FROM gpus WHERE run_id = ?",
        [run_id],
    ).fetchall()
    if sorted(known, key=repr) != sorted(gpus, key=repr):
        connection.execute("DELETE FROM gpus WHERE run_id = ?", [run_id])
        for row in gpus:
            connection.execute("INSERT INTO gpus VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [run_id, *row])
