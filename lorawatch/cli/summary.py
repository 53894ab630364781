"""What was measured and where it is: the end of `--record`, and `show`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from lorawatch.errors import LorawatchError
from lorawatch.launch.choose import launcher_logs
from lorawatch.recorder.logs import tail
from lorawatch.run.adapters import best_of
from lorawatch.run.directory import RunDir
from lorawatch.run.records import ExitRecord
from lorawatch.run.verdict import cause
from lorawatch.system.files import read_json
from lorawatch.text.masking import mask_text
from lorawatch.text.numbers import hanging
from lorawatch.text.run_summary import summary_lines
from lorawatch.text.sanitize import clean, json_text

if TYPE_CHECKING:
    from lorawatch.recorder.recorder import Recorder

_LINES = 20


def print_end(run: RunDir, recorder: Recorder, *, as_json: bool) -> None:
    """The last words of a recorder: how the run ended, what was measured, where it lies."""
    state = recorder.state
    if as_json:
        summary = None if recorder.history_waits else run_figures(run.run_id)
        words: dict[str, Any] = {
            "type": "end",
            "run_id": run.run_id,
            "state": state.state,
            "failure": state.failure,
            "message": state.message,
            "run_dir": str(run.root),
            "summary": summary,
        }
        _out(json_text(words))
        return
    if recorder.history_waits is None:
        print_summary(run.run_id)
    else:
        _out(f"{run.run_id} {state.state}{': ' + clean(state.message) if state.message else ''}")
        _out(f"the history took no lines: {recorder.history_waits}")
        _out(f"  they wait in {run.journal}; the next command brings them")
    if state.state == "failed":
        for line in log_end(run, run.last_attempt(), whole=bool(os.environ.get("LORAWATCH_DEBUG"))):
            _out(recorder.without_secrets(line), err=True)
    _out(f"run directory  {run.root}")
    if run.adapter.is_dir():
        _out(f"adapter        {run.adapter}")
    if best := best_of(run):
        _out(f"best adapter   {run.best}   step {best.step}")


def log_end(run: RunDir, attempt: int, *, whole: bool = False) -> list[str]:
    """Where the log lies that most likely says why a run failed, and its last line.

    Args:
        whole: Its last lines, a traceback for one.
    """
    records = [read_json(path, ExitRecord) for path in sorted(run.attempt_logs(attempt).glob("rank-*.exit.json"))]
    first = cause(r for r in records if r is not None)
    if first is not None and first.exit_code is not None:
        return []  # bad input: its message says everything
    failed = [run.rank_log(attempt, first.rank)] if first is not None else []
    for path in (*failed, *launcher_logs(run)):
        text = [clean(mask_text(line))[:200] for line in tail(path).splitlines() if line.strip(" =-")]
        if text:
            return [f"{'log':<14} {path}", *(f"  | {line}" for line in text[-_LINES if whole else -1 :])]
    return []


def run_figures(run_id: str) -> dict[str, Any] | None:
    """A run's row of `v_runs` joined with its summary, as plain data; None where the history lacks it."""
    from lorawatch.storage.queries import run_figures as figures

    try:
        return figures(run_id)
    except LorawatchError:
        return None


def print_summary(run_id: str) -> None:
    """The figures of a finished run, aligned, for people."""
    row = run_figures(run_id)
    if row is None:
        _out(f"{run_id} is not in the history yet")
        return
    for name, value in summary_lines(row):
        _out(hanging(f"{name:<14} ", value))


def _out(text: str, *, err: bool = False) -> None:
    """Print; a terminal that has gone away must not turn a finished run into a failed command."""
    try:
        click.echo(text, err=err)
    except OSError:
        sys.stdout = None
