"""How a run is stopped, by whom and with how much patience."""

from __future__ import annotations

from typing import Any, cast

import pytest
from history import make_run

from lorawatch.recorder import stopping
from lorawatch.recorder.stopping import Stopping
from lorawatch.recorder.workers import Workers
from lorawatch.run.directory import RunDir
from lorawatch.run.live import LiveView
from lorawatch.run.records import PhaseChange, RankStarted


class Told:
    """Workers that only note what is done to them."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.living = [1]

    def look(self) -> list[int]:
        return self.living

    def __getattr__(self, name: str) -> Any:
        def note(*_: float) -> bool:
            self.did.append(name)
            return False  # they do not go

        return note


class Case:
    def __init__(self, *, started: bool = True) -> None:
        self.run = make_run(ranks=1)
        self.view = LiveView(1)
        if started:
            self.view.feed(
                RankStarted(at=1.0, attempt=0, rank=0, local_rank=0, world_size=1, host="h", pid=1, device="cpu")
            )
        self.events: list[str] = []
        self.workers = Told()
        self.stopping = Stopping(self.run, self.view, lambda _kind, message, _severity: self.events.append(message))

    def look(self) -> list[str]:
        self.stopping.look(cast("Workers", self.workers))
        return self.workers.did

    def phase(self, name: str) -> None:
        self.view.feed(PhaseChange(at=2.0, attempt=0, rank=0, name=name))


def test_nothing_is_done_unasked() -> None:
    case = Case()
    assert (case.look(), case.stopping.kind, case.events) == ([], None, [])


def test_where_all_have_ended_none_is_asked() -> None:
    case = Case()
    case.workers.living = []
    case.run.request("stop")
    assert (case.look(), case.stopping.kind, case.events) == ([], "stop", [])


@pytest.mark.parametrize("by", ["signal", "directory"])
def test_the_first_request_asks_the_ranks_and_the_second_ends_all(by: str) -> None:
    case = Case()

    def ask(kind: Any) -> None:
        if by == "signal":
            case.stopping.signals += 1
        else:
            case.run.request(kind)

    ask("stop")
    assert case.look() == []
    assert case.look() == []
    assert case.run.requested("stop"), "the ranks hear of a signal too"
    assert case.stopping.kind == "stop"
    assert case.events == ["the ranks stop together at the next step and save; once more ends them at once"]
    ask("kill")
    assert case.look() == ["kill"]
    assert case.look() == ["kill"]
    assert case.stopping.kind == "kill"


def test_workers_without_a_step_are_asked_to_end_at_once() -> None:
    case = Case(started=False)
    case.stopping.signals += 1
    assert case.look() == ["terminate"]
    assert "no step to save yet" in case.events[0]


def test_patience_ends_but_not_while_a_rank_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 0.0)
    case = Case()
    case.phase("saving")
    case.stopping.signals += 1
    case.look()
    assert case.look() == []
    case.phase("training")
    assert case.look() == ["terminate", "wait_gone", "kill"]
    assert case.look() == ["terminate", "wait_gone", "kill"], "once"
    assert case.events[-1] == "the ranks did not stop within 0 s: ending them"


def test_a_request_that_the_disk_refuses_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(RunDir, "request", refuse)
        case.stopping.signals += 1
        case.look()
        case.look()
        assert not case.run.requested("stop")
    case.look()
    assert case.run.requested("stop")
    assert (case.workers.did, len(case.events)) == ([], 1)
