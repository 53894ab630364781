"""From the journals into the history: each complete line exactly once.

A batch's rows and the journal offsets behind them are one transaction. A process that dies in between leaves the history as it
was, and the next one starts from the offsets that are in it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.errors import JournalUnreadable, RunNotFound
from lorawatch.run.directory import ENDED, RunDir, RunState
from lorawatch.run.records import EventKind
from lorawatch.storage.bulk import Loader, Position
from lorawatch.storage.connection import once_more, writing
from lorawatch.storage.engine import Connection, Error, roll_back
from lorawatch.system import home
from lorawatch.text.masking import mask_arguments
from lorawatch.text.sanitize import clean, cleaned

# Bytes of journal in one transaction. At this size most rows go straight to the file's row groups, past the log, which is
# the fastest and takes no more memory than a third of it; the recorder's own cycles are a thousandth of it.
BATCH_BYTES = 48 << 20
# What a run's small files may say; what is in journals has its bounds in `lorawatch.run.records`.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "world_size": (0, 65_536),
    "exit_code": (-(2**31), 2**31 - 1),
    "attempts": (0, 1_000_001),
    "step": (0, 10**12),
    "steps_total": (0, 10**12),
    "sample_hz": (0, 1e6),
    "elapsed_s": (0, 1e9),
}


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

    A history in which damage shows is set aside, and the run comes into a new one; `storage.repair` brings the others.

    Args:
        deadline_s: How long to wait for a history that is held; a longer backlog also stops there, at a whole batch.
        history: The history file; default: the home's.

    Raises:
        HistoryBusy: Others held the history; the lines wait in the journals.
        JournalUnreadable: A journal cannot be read; the others are in.
        RunNotFound: The run was deleted meanwhile; nothing of it is in.
        HistoryError: The history cannot be written.
    """
    began = time.monotonic()

    def work() -> IngestReport:
        with writing(history, deadline_s=deadline_s) as connection:
            return _take(connection, run, began, time.monotonic() + deadline_s)

    return once_more(history, work, deadline_s=deadline_s)


def finish_run(run: RunDir, *, deadline_s: float = 2.0, history: Path | None = None) -> IngestReport:
    """Bring in all of an ended run, compute its summary, and take it off the list of open runs.

    A run that has not ended yet is only ingested.

    Raises:
        HistoryBusy, JournalUnreadable, RunNotFound, HistoryError: As `ingest_run`; the run stays open.
    """
    return once_more(history, lambda: _finish(run, deadline_s, history), deadline_s=deadline_s)


def _finish(run: RunDir, deadline_s: float, history: Path | None) -> IngestReport:
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
    if ended and history in (None, home.history_file()):
        (home.open_runs_folder() / run.run_id).unlink(missing_ok=True)
    return IngestReport(rows, broken, taken, True, time.monotonic() - began)


def _take(connection: Connection, run: RunDir, began: float, stop_at: float) -> IngestReport:
    """Batches until the journals' ends or `stop_at`, each a transaction."""
    positions = {
        file: Position(*values)
        for file, *values in connection.execute(
            "SELECT file, byte_offset, lines, broken_lines, mark, coalesce(known_until, 0), coalesce(cuts, 0) "
            "FROM journal_offsets WHERE run_id = ?",
            [run.run_id],
        ).fetchall()
    }
    # The state before the journals: what the state says (ended, how many steps) must not be ahead of the rows.
    facts = _facts(run)
    rows = broken = taken = 0
    unread: dict[str, str] = {}
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
                _report_cut(connection, run.run_id, batch.cut)
                _write_facts(connection, run.run_id, facts)
                connection.execute("COMMIT")
            except BaseException as error:
                roll_back(connection)
                if isinstance(error, Error) and not careful and _is_about_data(error):
                    careful = True
                    continue
                raise
            careful = False
            rows += inserted
            for name, at in batch.positions.items():  # a file that was cut counts from 0 again
                broken += max(at.broken_lines - positions.get(name, Position()).broken_lines, 0)
            taken += batch.byte_count
            unread.update(batch.unread)
            positions.update(batch.positions)
            if batch.complete and unread:
                file, why = next(iter(unread.items()))
                raise JournalUnreadable(
                    f"the journal {run.journal / file} cannot be read: {why}",
                    hint="its lines come into the history once it can; all other lines of the run are in",
                )
            if batch.complete or time.monotonic() >= stop_at:
                return IngestReport(rows, broken, taken, batch.complete, time.monotonic() - began)


def _is_about_data(error: Error) -> bool:
    """Whether the batch's content is to blame, not the disk or the file."""
    return type(error).__name__ in ("InvalidInputException", "ConversionException", "OutOfRangeException", "DataError")


def _write_offsets(connection: Connection, run_id: str, new: dict[str, Position]) -> None:
    if not new:
        return
    files = list(new)
    connection.execute(
        "DELETE FROM journal_offsets WHERE run_id = ? AND file IN (SELECT unnest(?::VARCHAR[]))", [run_id, files]
    )
    at = list(new.values())
    connection.execute(
        "INSERT INTO journal_offsets (run_id, file, byte_offset, lines, broken_lines, mark, known_until, cuts) "
        "SELECT $1, unnest($2::VARCHAR[]), unnest($3::BIGINT[]), unnest($4::BIGINT[]), unnest($5::BIGINT[]), "
        "unnest($6::BIGINT[]), unnest($7::BIGINT[]), unnest($8::BIGINT[])",
        [run_id, files, [p.byte_offset for p in at], [p.lines for p in at], [p.broken_lines for p in at],
         [p.mark for p in at], [p.known_until or None for p in at], [p.cuts or None for p in at]],
    )  # fmt: skip


def _report_cut(connection: Connection, run_id: str, cut: Mapping[str, tuple[int, int]]) -> None:
    """A journal that was cut or replaced is an event of its run, for it may have lost lines."""
    kind: EventKind = "journal_cut"
    for file, (taken, size) in cut.items():
        message = (
            f"{clean(file)} was cut or replaced: {taken:,} bytes of it had been taken into the history, now it has "
            f"{size:,}; it is read again, and what was taken before is not taken twice"
        )
        connection.execute(
            'INSERT INTO events (run_id, "at", kind, severity, message) VALUES (?, now(), ?, ?, ?)',
            [run_id, kind, "warning", message],
        )


def _state(run: RunDir) -> RunState:
    try:
        return run.state()
    except (OSError, msgspec.MsgspecError):
        return RunState()


def _facts(run: RunDir) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The run's row of `runs` by column, times as unix seconds, and its rows of `gpus`.

    Raises:
        RunNotFound: The run was deleted.
    """
    if not run.root.is_dir():  # deleted while this waited for the history: nothing of it may come back
        raise RunNotFound(f"run {run.run_id} is gone", hint="lorawatch runs lists them")
    state = _state(run)
    info = run.info_left()
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
        "elapsed_s": state.elapsed_s,
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
        if abs(g.gpu_index) < 2**31 and abs(g.memory_total_bytes or 0) < 2**63
    ]
    return {name: cleaned(_bounded(name, value)) for name, value in values.items()}, gpus


def _bounded(name: str, value: Any) -> Any:
    """A number that the run's files may say; what its column could not hold is missing, and the run comes in."""
    low, high = (0, 4_102_444_800) if name.endswith("_at") else _BOUNDS.get(name, (None, None))
    return None if low is not None and value is not None and not low <= value <= high else value


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
