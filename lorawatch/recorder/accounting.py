"""What the ranks made, held against what the history has of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from lorawatch.errors import LorawatchError
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalWriter
from lorawatch.run.records import Event, ExitRecord


def missing_steps(records: Iterable[ExitRecord], counts: Mapping[tuple[int, int], int]) -> list[tuple[int, int, int]]:
    """The ranks of which the history lacks steps.

    Args:
        records: How the ranks of an attempt ended; those that did not count their steps say nothing.
        counts: For each attempt and rank: its rows of `steps` in the history.

    Returns:
        For each such rank: its number, how many steps it made, how many of them are in the history.
    """
    made = ((r.rank, r.steps_made, counts.get((r.attempt, r.rank), 0)) for r in records if r.steps_made is not None)
    return [(rank, steps, there) for rank, steps, there in made if there < steps]


def journal_missing_steps(run: RunDir, records: Iterable[ExitRecord]) -> Event | None:
    """Write an event where ranks made more steps than the history has, once all of their lines are in it.

    Args:
        records: How the ranks of the last attempt ended.

    Returns:
        The event, for a display; None where nothing is missing, or the history cannot be asked now.
    """
    from lorawatch.storage.queries import step_counts

    try:
        missing = missing_steps(records, step_counts(run.run_id))
    except LorawatchError:
        return None
    if not missing:
        return None
    words = (f"rank {rank} made {made:,} steps, of which {there:,} are recorded" for rank, made, there in missing)
    event = Event(at=time.time(), kind="steps_missing", severity="warning", message="; ".join(words))
    journal = JournalWriter(run.events_journal)
    journal.append(event)
    journal.close()
    return event
