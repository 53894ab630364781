"""The queries of a run's page to the history and the run directory, and the text of its pages."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorawatch.run.metrics import GPU_METRICS, Metric
from lorawatch.screens.runs.words import one_line, state_words, where_words
from lorawatch.text.masking import mask_command_line
from lorawatch.text.numbers import MISSING, duration, hanging, number
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.screens.runs.curve_look import Question
    from lorawatch.storage.curves import Curves, RankRow
    from lorawatch.watching.logs import LogTail

EVENTS = 500
EVALUATIONS = 200
STRAGGLER = 1 / 1.25  # of the fastest rank's rate, as in Live's alert
_OF_STEPS = (
    ("rank", 4), ("tok/s", 7), ("of fastest", 10), ("p50 ms", 7), ("p95 ms", 7), ("wait ms", 7), ("max GiB", 7),
)  # fmt: skip


def load_run(run_id: str) -> dict[str, Any]:
    """The run's row, and the pages that it makes."""
    from lorawatch.run.liveness import note
    from lorawatch.storage.queries import run_evaluations, run_figures
    from lorawatch.text.run_summary import evaluation_lines, summary_lines

    row = run_figures(run_id, deadline_s=0.5)
    if row:
        row["note"] = note(run_id, row["state"])
    made = run_evaluations(run_id, deadline_s=0.5) if row and row["eval_step"] is not None else []
    evaluations = ["", "evaluations", *evaluation_lines(made, EVALUATIONS)] if made else []
    return {
        "row": row,
        "figures": [*figure_lines(row, list(summary_lines(row))), *evaluations] if row else [],
        "recipe": recipe_lines(row) if row else [],
    }


def load_curves(run_id: str, question: Question) -> Curves | None:
    """An answer for the plot; a window comes in twice the bins, since it is read with what lies beside it."""
    from lorawatch.storage.curves import BINS, run_curves

    return run_curves(
        run_id, axis=question.axis, each_rank=question.each_rank, window=question.window,
        bins=2 * BINS if question.window else BINS,
    )  # fmt: skip


def load_pages(run_id: str) -> dict[str, Any]:
    """Ranks and events."""
    from lorawatch.storage.curves import run_ranks
    from lorawatch.storage.queries import run_events

    return {"ranks": run_ranks(run_id), "events": run_events(run_id, EVENTS, deadline_s=0.5)}


def load_log(run_id: str, name: str) -> LogTail:
    """The end of one of the run's logs."""
    from lorawatch.run.directory import RunDir
    from lorawatch.system import home
    from lorawatch.watching.logs import read_tail

    return read_tail(RunDir(home.runs_folder() / run_id), name)


def title_words(row: dict[str, Any]) -> str:
    """The run in a line."""
    steps = f"step {row['steps'] or 0:,}" + (f"/{row['steps_total']:,}" if row["steps_total"] else "")
    words = [
        f"{row['run_id']}  {one_line(row['name'])[:40]}", state_words(row), steps, where_words(row),
        duration(row["duration_s"]), " ".join(f"#{one_line(t)}" for t in row["tags"] or ()),
    ]  # fmt: skip
    return "  ".join(w for w in words if w)


def figure_lines(row: dict[str, Any], summary: Sequence[tuple[str, str]]) -> list[str]:
    """The figures page."""
    lines = [hanging(f"{name:<14} ", clean(str(value))) for name, value in summary]
    if row.get("tags"):
        lines.append(f"{'tags':<14} {', '.join(one_line(t) for t in row['tags'])}")
    if row.get("versions"):
        lines.append(f"{'versions':<14} {one_line(row['versions'])}")
    return lines


def rank_metrics(rows: Sequence[RankRow]) -> list[Metric]:
    """The GPUs' metrics that the ranks page shows: those with a heading there; of optional ones what any rank has."""
    shown = [m for m in GPU_METRICS if m.ranks]
    return [m for m in shown if not m.optional or any(row.readings.get(m.name) is not None for row in rows)]


def rank_columns(metrics: Sequence[Metric]) -> list[tuple[str, int]]:
    """Headings and widths of the ranks page, the ones that fit 80 columns first."""
    return [*_OF_STEPS, *((m.ranks, len(m.ranks)) for m in metrics), ("steps", 9), ("GPU", 28)]


def rank_cells(row: RankRow, fastest: float | None, metrics: Sequence[Metric]) -> list[str]:
    """A line of the ranks page, in the order of `rank_columns`.

    Args:
        fastest: tok/s of the fastest rank.
        metrics: The GPUs' that are shown.
    """
    share = row.tok_s / fastest if row.tok_s is not None and fastest else None
    of_fastest = MISSING if share is None else f"{100 * share:.1f}%" + (" ◄" if share < STRAGGLER else "")
    gpu = MISSING
    if row.sku:
        gpu = f"{row.gpu_index if row.gpu_index is not None else '?'} · {one_line(row.sku).removeprefix('NVIDIA ')}"
    return [
        str(row.rank), number(row.tok_s), of_fastest, _ms(row.step_p50_s), _ms(row.step_p95_s), _ms(row.data_wait_s),
        MISSING if row.memory_bytes is None else f"{row.memory_bytes / 2**30:.1f}",
        *(m.text(row.readings.get(m.name)) for m in metrics),
        f"{row.steps:,}", gpu,
    ]  # fmt: skip


def _ms(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds, 1)


def event_lines(row: dict[str, Any], events: Sequence[dict[str, Any]], width: int) -> list[str]:
    """The events page: clock, time into the run, how bad it is, whose it is, and what happened.

    Args:
        width: Characters of a line; an event's further lines stand below its first.
    """
    from lorawatch.text.run_summary import event_words

    lines = []
    marks = {"warning": "!", "error": "✗"}
    for event in events:
        clock = time.strftime("%H:%M:%S", time.localtime(event["at_s"]))
        start = row.get("started_at_s")
        into = duration(event["at_s"] - start) if start is not None and event["at_s"] >= start else ""
        began = f"{clock} {into:>8} {marks.get(event['severity'], '·')} "
        message = one_line(event_words(event, row.get("world_size")))[:400]
        wrapped = textwrap.wrap(message, max(width - len(began), 20), break_on_hyphens=False)
        lines.append(hanging(began, "\n".join(wrapped)))
    if len(events) == EVENTS:
        lines.insert(0, f"the latest {EVENTS} events; lorawatch sql has the others")
    return lines or ["no events"]


def recipe_lines(row: dict[str, Any]) -> list[str]:
    """The recipe page: YAML, or an own command."""
    command = [clean(mask_command_line(str(row["command"])))] if row.get("command") else []
    if row.get("own_command"):
        return command or ["no command was recorded"]
    recipe = row.get("recipe")
    if not recipe:
        return ["no recipe was recorded"]
    import msgspec

    from lorawatch.recipe.yaml_text import write_yaml

    try:
        text = write_yaml(msgspec.json.decode(recipe))
    except msgspec.MsgspecError:
        text = str(recipe)
    return [clean(line) for line in text.splitlines()]
