"""Everything that can be compared: the history's runs and the published tables."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorawatch.comparing.configuration import (
    Configuration,
    Excluded,
    epoch_cell,
    measured,
    published,
    published_key,
)
from lorawatch.comparing.work import one_line
from lorawatch.errors import UsageError
from lorawatch.published.builtin import builtin_rows
from lorawatch.published.checks import differences
from lorawatch.published.printed import compact
from lorawatch.published.rows import PublishedRow
from lorawatch.storage import files
from lorawatch.storage.configurations import RunSummary, run_summaries
from lorawatch.storage.connection import reading
from lorawatch.storage.published import list_published


@dataclass(frozen=True, slots=True)
class Gathered:
    """The configurations to choose from.

    Attributes:
        differences: Configuration's key → printed column → what the table's own figures give, in words.
    """

    configurations: tuple[Configuration, ...]
    excluded: tuple[Excluded, ...] = ()
    differences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def gather(
    *,
    name: str | None = None,
    tag: str | None = None,
    sweep: str | None = None,
    unfinished: bool = False,
    with_published: bool = True,
    deadline_s: float = 2.0,
) -> Gathered:
    """Read the history's summaries and the published tables; one short read.

    Args:
        name, tag, sweep: Only runs with this recipe name, tag, or of this sweep.
        unfinished: Include runs that failed or were stopped.

    Raises:
        UsageError: No run has that recipe, tag or sweep.
        HistoryBusy: A writer held the history for that long.
        HistoryError: It cannot be read.
    """
    opened = reading(deadline_s=deadline_s) if not files.absent() else contextlib.nullcontext()
    with opened as connection:
        runs, recipes = run_summaries(connection=connection)
        rows: Sequence[PublishedRow] = (
            (list_published(connection=connection) or builtin_rows()) if with_published else ()
        )
    wanted = [r for r in runs if _wanted(r, name, tag, sweep)]
    if not wanted and (name is not None or tag is not None or sweep is not None):
        raise _no_such_run(runs, name, tag, sweep)
    configurations, excluded = measured(wanted, recipes, unfinished=unfinished)
    return Gathered((*configurations, *published(rows)), tuple(excluded), _differences(rows))


def _wanted(run: RunSummary, name: str | None, tag: str | None, sweep: str | None) -> bool:
    return (
        (name is None or run.name == name)
        and (tag is None or tag in run.tags)
        and (sweep is None or run.sweep_id == sweep)
    )


def _differences(rows: Sequence[PublishedRow]) -> dict[str, dict[str, str]]:
    by_row: dict[str, dict[str, str]] = {}
    for differs in differences(rows):
        tokens = differs.row.dataset_tokens
        column = epoch_cell(tokens) if differs.column == "epoch_time" and tokens is not None else differs.column
        computed = f"{compact(differs.computed, differs.printed)} ({differs.reason})"
        by_row.setdefault(published_key(differs.row), {})[column] = computed
    return by_row


def _no_such_run(runs: Sequence[RunSummary], name: str | None, tag: str | None, sweep: str | None) -> UsageError:
    wanted = [
        f"{what} {value!r}" for what, value in (("recipe", name), ("tag", tag), ("sweep", sweep)) if value is not None
    ]
    if not runs:
        return UsageError("no run has been recorded yet", hint="record one: lorawatch --record")
    names = list(dict.fromkeys(one_line(r.name) for r in reversed(runs)))
    return UsageError(
        f"no recorded run has {' and '.join(wanted)}",
        hint=f"known recipes: {', '.join(names[:8])}; lorawatch runs lists the runs",
    )
