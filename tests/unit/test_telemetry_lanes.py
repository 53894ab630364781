"""Lanes: punctual, countable, never in a burst, and always stoppable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lorawatch.telemetry import lanes
from lorawatch.telemetry.lanes import Lane, Timing

LONG_S = 20


class Clock:
    """Time for a lane that only its own waiting and working spend, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 100.0
        self.interrupted: tuple[float, Callable[[], None]] | None = None
        """Into the next wait, after so many seconds, this is called."""

    def monotonic(self) -> float:
        return self.now

    def waiting(self) -> threading.Event:
        """An event whose `wait` spends this clock's time."""
        clock = self

        class Event(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                if clock.interrupted:
                    (after, act), clock.interrupted = clock.interrupted, None
                    clock.now += after
                    act()
                elif not self.is_set():
                    clock.now += timeout
                return self.is_set()

        return Event()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lanes, "time", clock)
    monkeypatch.setattr(lanes, "threading", SimpleNamespace(Event=clock.waiting, Thread=threading.Thread))
    return clock


def run(lane: Lane) -> None:
    """Until its tick stops it."""
    lane.start()
    assert lane.join(LONG_S)


def test_ticks_keep_to_the_schedule(clock: Clock) -> None:
    times: list[float] = []

    def tick(number: int) -> None:
        times.append(clock.now)
        clock.now += 0.02
        if number == 19:
            lane.stop()

    lane = Lane("test", 0.05, tick)
    run(lane)
    # on an absolute schedule the work's own 20 ms do not add up
    assert times == pytest.approx([100 + 0.05 * number for number in range(20)])
    assert lane.timing == Timing(ticks=20, missed=0, late=0, worst_late_s=pytest.approx(0, abs=1e-9))


def test_a_tick_that_takes_too_long_leaves_the_due_ones_out(clock: Clock) -> None:
    numbers: list[int] = []

    def tick(number: int) -> None:
        numbers.append(number)
        if number == 2:
            clock.now += 0.37  # from the tick due at 0.10 to 0.47: those of 0.15 to 0.45 are past
        if number == 15:
            lane.stop()

    lane = Lane("test", 0.05, tick)
    run(lane)
    assert numbers == [0, 1, 2, *range(9, 16)]
    assert (lane.timing.ticks, lane.timing.missed) == (10, 6)
    assert lane.timing.late == 1
    assert lane.timing.worst_late_s == pytest.approx(0.02)
    assert lane.timing.on_time == pytest.approx(9 / 16)


def test_a_wake_comes_between_ticks_and_does_not_move_them(clock: Clock) -> None:
    ticks: list[float] = []
    woken: list[float] = []

    def tick(number: int) -> None:
        ticks.append(clock.now)
        if number == 0:
            clock.interrupted = (0.1, lane.wake)
        if number == 1:
            lane.stop()

    lane = Lane("test", 0.3, tick, on_wake=lambda: woken.append(clock.now))
    run(lane)
    assert woken == pytest.approx([100.1])
    assert ticks == pytest.approx([100, 100.3])


def test_stop_is_prompt_and_lets_the_lane_say_a_last_word() -> None:
    began, ended = threading.Event(), threading.Event()
    lane = Lane("test", 10 * LONG_S, lambda n: began.set(), on_end=ended.set)
    lane.start()
    assert began.wait(LONG_S)
    lane.stop()
    assert lane.join(LONG_S), "it does not wait for its next tick"
    assert ended.is_set()


def test_a_lane_that_hangs_says_by_how_much_and_does_not_hold_stop(clock: Clock) -> None:
    began, release = threading.Event(), threading.Event()
    lane = Lane("test", 0.1, lambda n: (began.set(), release.wait(), lane.stop())[2])
    lane.start()
    assert began.wait(LONG_S)
    clock.now += 0.4
    assert lane.behind_s() == pytest.approx(0.3)
    lane.stop()
    assert not lane.join(0.01)
    release.set()
    assert lane.join(LONG_S)
    assert lane.behind_s() == 0


def test_a_lane_that_never_started_is_at_rest() -> None:
    lane = Lane("test", 0.1, lambda n: None)
    assert lane.behind_s() == 0
    lane.stop()
    assert lane.join(0)
    assert lane.timing == Timing()
    assert lane.timing.on_time == 1
