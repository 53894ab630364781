"""Garbage of the screens is collected in time, and nothing is kept that is no longer shown."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from lorawatch.screens import garbage
from lorawatch.screens.garbage import Collector


class Ring:
    """Refers to itself, as Textual's strips do."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def rings(number: int) -> weakref.ref[Ring]:
    made = [Ring() for _ in range(number)]
    return weakref.ref(made[-1])


def test_only_what_is_worth_it_is_collected() -> None:
    collector = Collector()
    gc.collect()
    few = rings(100)
    collector.collect()
    assert few() is not None
    many = rings(5_000)
    assert many() is not None, "making them collects nothing"
    collector.collect()
    assert few() is None
    assert many() is None


def test_a_collection_that_took_long_is_not_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    collector = Collector()
    collect = gc.collect

    def slowly() -> int:
        now[0] += 0.1
        return collect()

    monkeypatch.setattr(gc, "collect", slowly)
    left = []
    for at in (0.5, 3.0, 5.5, 6.0):  # 0.1 s are a fiftieth of 5 s
        now[0] = max(now[0], at)
        ring = rings(5_000)
        collector.collect()
        left.append(ring() is not None)
    assert left == [False, True, True, False]


def test_what_the_first_screens_are_made_of_is_looked_at_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    collector = Collector()
    frozen = []
    for at in (0.5, 3.5, 4.0):
        now[0] = at
        kept = [Ring() for _ in range(5_000)]
        collector.collect()
        frozen.append(gc.get_freeze_count())
        del kept
    assert frozen[0] == 0
    assert frozen[1] > 5_000
    assert frozen[2] <= frozen[1], "once"
