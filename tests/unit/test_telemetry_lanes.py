"""Lanes: punctual, countable, never in a burst, and always stoppable."""

from __future__ import annotations

import threading
import time

import pytest

from lorawatch.telemetry.lanes import Lane, Timing


def test_ticks_keep_to_the_schedule() -> None:
    times: list[float] = []
    lane = Lane("test", 0.05, lambda number: (times.append(time.monotonic()), time.sleep(0.02))[0])
    lane.start()
    time.sleep(1.02)
    lane.stop()
    assert lane.join(1)
    # on an absolute schedule the work's own 20 ms do not add up
    assert 19 <= len(times) <= 21
    assert times[-1] - times[0] == pytest.approx(0.05 * (len(times) - 1), abs=0.03)
    assert lane.timing.ticks == len(times)


def test_a_tick_that_takes_too_long_leaves_the_due_ones_out() -> None:
    numbers: list[int] = []

    def tick(number: int) -> None:
        numbers.append(number)
        if number == 2:
            time.sleep(0.35)

    lane = Lane("test", 0.05, tick)
    lane.start()
    time.sleep(0.8)
    lane.stop()
    assert lane.join(1)
    assert numbers[:3] == [0, 1, 2]
    assert numbers[3] in (8, 9, 10)
    assert numbers[3:] == list(range(numbers[3], numbers[-1] + 1))
    timing = lane.timing
    assert timing.missed == numbers[3] - 3
    assert timing.ticks == len(numbers)
    assert timing.on_time < 1


def test_a_wake_comes_between_ticks_and_does_not_move_them() -> None:
    ticks: list[float] = []
    woken: list[float] = []
    lane = Lane("test", 0.3, lambda n: ticks.append(time.monotonic()), on_wake=lambda: woken.append(time.monotonic()))
    lane.start()
    time.sleep(0.1)
    asked = time.monotonic()
    lane.wake()
    time.sleep(0.4)
    lane.stop()
    assert lane.join(1)
    assert len(woken) == 1
    assert woken[0] - asked < 0.05
    assert ticks[1] - ticks[0] == pytest.approx(0.3, abs=0.03)


def test_stop_is_prompt_and_lets_the_lane_say_a_last_word() -> None:
    ended: list[bool] = []
    lane = Lane("test", 60, lambda n: None, on_end=lambda: ended.append(True))
    lane.start()
    time.sleep(0.05)
    started = time.monotonic()
    lane.stop()
    assert lane.join(1)
    assert time.monotonic() - started < 0.2
    assert ended == [True]


def test_a_lane_that_hangs_says_by_how_much_and_does_not_hold_stop() -> None:
    release = threading.Event()
    lane = Lane("test", 0.1, lambda n: (release.wait(), None)[1])
    lane.start()
    time.sleep(0.4)
    assert lane.behind_s() == pytest.approx(0.3, abs=0.08)
    lane.stop()
    started = time.monotonic()
    assert not lane.join(0.1)
    assert time.monotonic() - started < 0.3
    release.set()
    assert lane.join(1)
    assert lane.behind_s() == 0


def test_a_lane_that_never_started_is_at_rest() -> None:
    lane = Lane("test", 0.1, lambda n: None)
    assert lane.behind_s() == 0
    lane.stop()
    assert lane.join(0)
    assert lane.timing == Timing()
    assert lane.timing.on_time == 1
