"""Energy by counter, shaped by power, on made and on real readings."""

from __future__ import annotations

import pytest
from history import h100_names, h100_trace

from lorawatch.analysis.energy import energy_over

Reading = tuple[float, float | None, float | None]


def steady(watts: float = 100.0, seconds: int = 20, counter_every: int = 5) -> list[Reading]:
    """5 Hz power and a counter that goes with it."""
    return [(0.2 * i, watts, watts * 0.2 * i if i % counter_every == 0 else None) for i in range(5 * seconds + 1)]


def test_steady_power_over_a_window_between_counter_readings() -> None:
    energy = energy_over(steady(), [(3.3, 7.7), (9.05, 12.5)])
    assert energy.counter_j == pytest.approx(100 * 7.85)
    assert energy.integral_j == pytest.approx(100 * 7.85)
    assert energy.disagreement_pct == pytest.approx(0, abs=1e-9)


def test_the_counter_between_two_readings_goes_where_the_power_was() -> None:
    # 0 W for half a second, then 200 W: the window's edge lies at the change
    readings: list[Reading] = [
        (0.0, 0.0, 0.0),
        (0.5, 0.0, None),
        (0.5001, 200.0, None),
        (1.0, 200.0, 110.0),
        (2.0, 200.0, 330.0),
    ]
    energy = energy_over(readings, [(0.5, 2.0)])
    assert energy.counter_j == pytest.approx(330, rel=1e-3), "the counter's joules, not the integral's 300"
    assert energy.integral_j == pytest.approx(300, rel=1e-3)
    assert energy.disagreement_pct == pytest.approx(-9.09, abs=0.1)


def test_without_power_the_counter_is_shared_out_evenly() -> None:
    energy = energy_over([(0.0, None, 0.0), (10.0, None, 1000.0)], [(2.0, 7.0)])
    assert energy.counter_j == pytest.approx(500)
    assert energy.integral_j is None


def test_without_a_counter_there_is_the_integral_only() -> None:
    energy = energy_over([(t, w, None) for t, w, _ in steady()], [(1.0, 5.0)])
    assert energy.counter_j is None
    assert energy.integral_j == pytest.approx(400)


def test_a_counter_that_starts_anew_is_bridged_by_power() -> None:
    readings = [(t, w, None if e is None else e if t < 10 else e - 950) for t, w, e in steady()]
    energy = energy_over(readings, [(5.0, 15.0)])
    assert energy.counter_j == pytest.approx(1000)


def test_edges_outside_the_counter_readings_come_from_power() -> None:
    readings = [(t, w, e if 3 <= t <= 17 else None) for t, w, e in steady()]
    assert energy_over(readings, [(1.0, 19.0)]).counter_j == pytest.approx(1800)


def test_a_window_that_was_hardly_read_has_no_energy() -> None:
    energy = energy_over([r for r in steady() if r[0] < 5], [(0.0, 20.0)])
    assert energy.counter_j is None
    assert energy.integral_j is None
    assert energy_over([], [(0.0, 1.0)]).counter_j is None
    assert energy_over(steady(), []).counter_j is None


def test_a_hole_in_the_power_is_not_interpolated() -> None:
    readings = [(t, w, e) for t, w, e in steady(seconds=60) if not 10 < t < 50]
    energy = energy_over(readings, [(0.0, 60.0)])
    assert energy.integral_j is None
    assert energy.counter_j == pytest.approx(6000), "the counter went on counting"


@pytest.mark.parametrize("name", h100_names())
def test_real_counter_and_power_of_an_h100(name: str) -> None:
    trace = h100_trace(name)
    begin, end = trace["t0"], trace["t0"] + sum(trace["steps_ms"]) / 1e3
    data = trace["rows"]
    end = min(end, data[-1][0])
    every = [(r[0], r[2], r[4] / 1e3) for r in data]
    full = energy_over(every, [(begin, end)])
    assert full.counter_j is not None
    assert full.integral_j is not None
    # what the counter says at the reading next to each edge, by hand
    inside = [r for r in data if begin <= r[0] <= end]
    by_hand = (inside[-1][4] - inside[0][4]) / 1e3 / (inside[-1][0] - inside[0][0]) * (end - begin)
    assert full.counter_j == pytest.approx(by_hand, rel=0.02)
    # the real lane reads the counter once a second only: the same within the noise of instant power over its edges
    once_a_second, last = [], -1.0
    for at, watts, joules in every:
        due = at - last >= 1.0
        last = at if due else last
        once_a_second.append((at, watts, joules if due else None))
    sparse = energy_over(once_a_second, [(begin, end)])
    assert sparse.counter_j == pytest.approx(full.counter_j, rel=0.02)
    if end - begin >= 5:
        assert full.disagreement_pct is not None
        assert abs(full.disagreement_pct) < 4, "10 Hz samples of a power that swings by the step"
