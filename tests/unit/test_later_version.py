"""A journal of a later version: kinds of events and fields that nothing here knows cost no line, and are shown."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from history import T0, end, make_run, rows

from lorawatch.cli.display import JsonLines, PlainLines
from lorawatch.cli.runs import show
from lorawatch.run.directory import RunDir, RunState
from lorawatch.run.follower import Follower
from lorawatch.run.live import LiveView
from lorawatch.run.records import EventKind
from lorawatch.storage.ingest import finish_run
from lorawatch.watching.watch import Watch

ROOT = Path(__file__).parents[2]
LATER = "fabric_rerouted"
EVENT = {
    "t": "event",
    "at": T0 + 4,
    "kind": LATER,
    "message": "the fabric chose another way",
    "node": 3,
    "why": {"a": 1},
}
STEP = {
    "t": "step",
    "attempt": 0,
    "rank": 0,
    "step": 7,
    "ended_at": T0 + 3,
    "duration_s": 0.5,
    "tokens": 1000,
    "moe": [1],
}


@pytest.fixture
def later(lorawatch_home: Path) -> RunDir:
    run = make_run("later", ranks=1)
    for path, line in ((run.rank_journal(0), STEP), (run.events_journal, EVENT)):
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    return run


def test_a_live_view_keeps_and_shows_an_event_of_an_unknown_kind(later: RunDir) -> None:
    assert LATER not in get_args(EventKind)
    view, watch = LiveView(1), Watch(later.info())
    for line in Follower(later, view).poll():
        watch.feed(line)
    assert [(s.step, s.tokens) for s in view.steps] == [(7, 1000)]
    assert [(e.kind, e.message) for e in view.events] == [(LATER, EVENT["message"])]
    assert [e.kind for e in watch.frame(T0 + 5, RunState(state="running")).events] == [LATER]
    plain, lines = io.StringIO(), io.StringIO()
    for display in (PlainLines(plain), JsonLines(lines)):
        display.event(view.events[0])
    assert plain.getvalue() == f"info: {EVENT['message']}\n"
    assert json.loads(lines.getvalue())["kind"] == LATER


def test_the_history_and_show_have_an_event_of_an_unknown_kind(later: RunDir) -> None:
    end(later)
    finish_run(later)
    assert rows("SELECT kind, message FROM events") == [(LATER, EVENT["message"])]
    assert rows("SELECT step, tokens FROM steps") == [(7, 1000)]
    assert rows("SELECT sum(broken_lines) FROM journal_offsets") == [(0,)]
    assert str(EVENT["message"]) in CliRunner().invoke(show, [later.run_id]).output
    answer = json.loads(CliRunner().invoke(show, [later.run_id, "--json"]).stdout)
    assert [event["kind"] for event in answer["events"]] == [LATER]


@pytest.mark.slow
def test_mypy_refuses_a_writer_whose_kind_of_event_is_unknown(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(
        "from lorawatch.run.records import Event\n"
        'Event(at=0.0, kind="hang")\n'
        'Event(at=0.0, kind="hangs")\n'
        "def show(event: Event) -> str:\n"
        "    return event.kind\n",
        encoding="utf-8",
    )
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-error-summary", script],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert [line.split(":")[1] for line in checked.stdout.splitlines() if "error:" in line] == ["3"], checked.stdout
