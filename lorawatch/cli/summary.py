"""What was measured and where it is: the end of `--record`, and `show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorawatch.adapters import best_of
from lorawatch.errors import LorawatchError
from lorawatch.figures import summary_lines
from lorawatch.masking import mask_text
from lorawatch.rundir import RunDir
from lorawatch.sanitize import clean, json_text
from lorawatch.text import hanging

if TYPE_CHECKING:
    from lorawatch.recorder.recorder import Recorder


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
        for line in log_end(run, run.last_attempt()):
            _out(f"  | {line}", err=True)
    _out(f"run directory  {run.root}")
    if run.adapter.is_dir():
        _out(f"adapter        {run.adapter}")
    if best := best_of(run):
        _out(f"best adapter   {run.best}   step {best.step}")


def log_end(run: RunDir, attempt: int, lines: int = 8) -> list[str]:
    """The last lines of the log that most likely says why: a failed rank's, else the launcher's."""
    from lorawatch.records import ExitRecord
    from lorawatch.rundir import read_json

    failed: list[Path] = []
    for path in sorted(run.attempt_logs(attempt).glob("rank-*.exit.json")):
        record = read_json(path, ExitRecord)
        if record is not None and record.exit_code is not None:
            return []  # bad input: its message says everything
        if record is not None and record.status == "failed":
            failed.append(run.rank_log(attempt, record.rank))
    from lorawatch.recorder.logs import tail

    for path in (*failed, run.logs / "command.log", run.logs / "torchrun.log"):
        text = [clean(mask_text(line))[:200] for line in tail(path).splitlines() if line.strip()]
        if text:
            return [f"{path}:", *text[-lines:]]
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
