"""The agreements: whatever the moments at which ranks see a request, all stop, or save, at the same step."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from lorawatch.system.files import write_atomically
from lorawatch.training import stopping
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.stopping import SaveAgreement, StopAgreement


def test_nobody_stops_unasked(tmp_path: Path) -> None:
    agreement = StopAgreement(tmp_path, RankInfo())
    agreement.tick()
    assert not agreement.step_completed(1)
    assert list(tmp_path.iterdir()) == []


def test_a_single_rank_stops_after_the_next_step(tmp_path: Path) -> None:
    agreement = StopAgreement(tmp_path, RankInfo())
    assert not agreement.step_completed(4)
    (tmp_path / "stop").touch()
    agreement.tick()
    assert agreement.stop_at == 5
    assert (tmp_path / "ack-attempt_0-rank-0").read_text() == "5"
    assert agreement.step_completed(5)


def test_the_last_step_waits_for_nobody(tmp_path: Path) -> None:
    agreement = StopAgreement(tmp_path, RankInfo(rank=0, world_size=2))
    assert not agreement.step_completed(9, 10)
    (tmp_path / "stop").touch()
    agreement.tick()
    assert not agreement.step_completed(10, 10)  # the other rank has ended and will never pledge


def test_pledges_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    (tmp_path / "ack-attempt_0-rank-1").write_text("3")
    agreement = StopAgreement(tmp_path, RankInfo(rank=0, world_size=2, attempt=1))
    agreement.tick()
    assert agreement.stop_at is None


def test_a_pledge_that_cannot_be_written_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = tmp_path / "control"
    agreement = StopAgreement(control, RankInfo())
    control.mkdir()
    (control / "stop").touch()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(stopping, "write_atomically", refuse)
        agreement.tick()
        assert not agreement.step_completed(1)  # no wait: it has pledged nothing
    agreement.tick()
    assert agreement.stop_at == 2


def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    """Ranks coupled as by a collective in each step; requests and looks at random moments."""
    for trial in range(20):
        control = tmp_path / str(trial)
        control.mkdir()
        ranks, dice = 4, random.Random(trial)
        together = threading.Barrier(ranks)
        ended: dict[int, int] = {}
        done = threading.Event()

        def run(rank: int, seed: int, control: Path = control, together: threading.Barrier = together,
                ended: dict[int, int] = ended, done: threading.Event = done) -> None:  # fmt: skip
            agreement = StopAgreement(control, RankInfo(rank=rank, world_size=4))
            chance = random.Random(seed)

            def look() -> None:
                while not done.wait(chance.uniform(0, 0.004)):
                    agreement.tick()

            threading.Thread(target=look, daemon=True).start()
            for step in range(1, 10_000):
                together.wait(timeout=10)
                time.sleep(chance.uniform(0, 0.001))
                if agreement.step_completed(step):
                    ended[rank] = step
                    return

        threads = [threading.Thread(target=run, args=(r, dice.random())) for r in range(ranks)]
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0, 0.02))
        (control / "stop").touch()
        for thread in threads:
            thread.join(timeout=10)
        done.set()
        assert len(ended) == ranks, f"trial {trial}: a rank never stopped"
        assert len(set(ended.values())) == 1, f"trial {trial}: {ended}"


def test_a_request_for_a_checkpoint_is_served_once_and_the_next_one_again(tmp_path: Path) -> None:
    agreement = SaveAgreement(tmp_path, RankInfo())
    agreement.tick()
    assert not agreement.step_completed(1)
    write_atomically(tmp_path / "checkpoint", b"")
    agreement.tick()
    assert [agreement.step_completed(step) for step in (2, 3)] == [True, False]
    agreement.tick()
    assert not agreement.step_completed(4), "the file is still there, but was served"
    write_atomically(tmp_path / "checkpoint", b"")
    agreement.tick()
    assert agreement.step_completed(5)


def test_nobody_saves_on_request_at_the_last_step(tmp_path: Path) -> None:
    agreement = SaveAgreement(tmp_path, RankInfo())
    assert not agreement.step_completed(9, 10)
    write_atomically(tmp_path / "checkpoint", b"")
    agreement.tick()
    assert not agreement.step_completed(10, 10)


def test_all_ranks_save_at_the_same_steps_however_often_somebody_asks(tmp_path: Path) -> None:
    """Ranks coupled as by a collective in each step and in each save; requests come faster than they are served."""
    for trial in range(10):
        control = tmp_path / str(trial)
        control.mkdir()
        ranks, dice = 4, random.Random(trial)
        together = threading.Barrier(ranks)
        saved: dict[int, list[int]] = {r: [] for r in range(ranks)}
        done = threading.Event()

        def run(rank: int, seed: float, control: Path = control, together: threading.Barrier = together,
                saved: dict[int, list[int]] = saved, done: threading.Event = done) -> None:  # fmt: skip
            agreement = SaveAgreement(control, RankInfo(rank=rank, world_size=4))
            chance = random.Random(seed)

            def look() -> None:
                while not done.wait(chance.uniform(0, 0.004)):
                    agreement.tick()

            threading.Thread(target=look, daemon=True).start()
            for step in range(1, 301):
                together.wait(timeout=10)
                time.sleep(chance.uniform(0, 0.001))
                if agreement.step_completed(step, 300):
                    saved[rank].append(step)
                    together.wait(timeout=10)

        threads = [threading.Thread(target=run, args=(r, dice.random())) for r in range(ranks)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            write_atomically(control / "checkpoint", b"")
            time.sleep(dice.uniform(0, 0.02))
        done.set()
        assert not together.broken, f"trial {trial}: a rank waited for ever"
        assert len({tuple(steps) for steps in saved.values()}) == 1, f"trial {trial}: {saved}"
        assert len(saved[0]) > 2


def test_a_rank_that_never_answers_is_waited_for_a_while_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script with the callback on ranks 0 and 2 of 3: they train on, and the request is not tried again."""
    waits: list[float | None] = []

    class Silent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return self.is_set()

    monkeypatch.setattr(stopping, "ANSWER_S", 300.0)
    kinds = {"stop": StopAgreement, "checkpoint": SaveAgreement}
    for request, kind in kinds.items():
        control = tmp_path / request
        control.mkdir()
        agreement = kind(control, RankInfo(rank=0, world_size=3))
        agreement._agreed = Silent()
        assert not agreement.step_completed(4)
        write_atomically(control / request, b"")
        other = kind(control, RankInfo(rank=2, world_size=3))
        assert not other.step_completed(4)
        agreement.tick()
        other.tick()
        assert not agreement.step_completed(5)
        assert waits == [300.0]
        assert agreement.unanswered == [1]
        for step in (6, 7):
            agreement.tick()
            assert not agreement.step_completed(step)
        assert waits == [300.0], "it waits once"
        waits.clear()
        assert [p.name for p in control.iterdir() if "rank-0" in p.name] == [], "its pledge is withdrawn"


def test_a_checkpoint_asked_for_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ANSWER_S", 0.1)
    ranks = [SaveAgreement(tmp_path, RankInfo(rank=r, world_size=2)) for r in (0, 1)]
    write_atomically(tmp_path / "checkpoint", b"")
    ranks[0].tick()
    assert not ranks[0].step_completed(1)
    assert ranks[0].unanswered == [1]
    write_atomically(tmp_path / "checkpoint", b"")
    for _ in range(2):
        for rank in ranks:
            rank.tick()
    assert [rank.step_completed(2) for rank in ranks] == [True, True]


@pytest.mark.parametrize("planted", ["link", "pipe", "folder", "words", "huge", "minus"])
def test_whatever_lies_in_a_pledges_place_blocks_no_rank(tmp_path: Path, planted: str) -> None:
    place = tmp_path / "ack-attempt_0-rank-1"
    (tmp_path / "elsewhere").write_text("7")
    if planted == "link":
        place.symlink_to(tmp_path / "elsewhere")
    elif planted == "pipe":
        os.mkfifo(place)
    elif planted == "folder":
        place.mkdir()
    else:
        place.write_text({"words": "soon", "huge": "9" * 5000, "minus": "-3"}[planted])
    (tmp_path / "stop").touch()
    agreement = StopAgreement(tmp_path, RankInfo(rank=0, world_size=2))
    agreement.tick()
    assert agreement.stop_at is None
