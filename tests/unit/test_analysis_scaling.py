"""Speed-up, efficiency and what was lost, on published figures and for any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.analysis.interval import Figure, total
from lorawatch.analysis.scaling import coupling_efficiency_pct, efficiency_pct, karp_flatt, speedup, split_loss

rates = st.floats(1, 1e7)
measured = st.builds(lambda value, share: Figure(value, value * share), rates, st.floats(0, 0.2))
counts = st.integers(2, 64)


@pytest.mark.parametrize(
    ("one", "n", "rate", "times", "percent", "serial"),
    [
        (2777, 2, 5429, 1.96, 97.8, 0.0230),
        (2777, 3, 8083, 2.91, 97.0, 0.0153),
        (2777, 4, 10717, 3.86, 96.5, 0.0122),
        (3721, 2, 7216, 1.94, 97.0, 0.0313),
        (4962, 2, 9541, 1.92, 96.1, 0.0401),
    ],
)
def test_published_rtx_pro_figures(one: int, n: int, rate: int, times: float, percent: float, serial: float) -> None:
    baseline, figure = Figure(one, None), Figure(rate, None)
    # printed with two and one digits, of rates that were rounded only afterwards
    assert speedup(figure, baseline).value == pytest.approx(times, abs=0.0051)
    assert efficiency_pct(figure, baseline, n).value == pytest.approx(percent, abs=0.051)
    assert karp_flatt(rate / one, n) == pytest.approx(serial, abs=5e-5)
    assert efficiency_pct(figure, baseline, n).ci95 is None


def test_efficiency_has_an_interval_in_percent() -> None:
    result = efficiency_pct(Figure(10717, 0.003 * 10717), Figure(2777, 0.004 * 2777), 4)
    assert result.value == pytest.approx(96.48, abs=0.005)
    assert result.relative == pytest.approx(0.005)


def test_coupling_efficiency_against_separate_runs() -> None:
    separate = total([Figure(2600, 10), Figure(2620, 10), Figure(2580, 10), Figure(2600, 10)])
    assert separate == Figure(10400, 20)
    result = coupling_efficiency_pct(Figure(10192, 0), separate)
    assert result.value == pytest.approx(98)
    assert result.ci95 == pytest.approx(98 * 20 / 10400)


def test_a_loss_falls_apart_into_machine_and_communication() -> None:
    parts = split_loss(Figure(9000, 30), Figure(9500, 40), Figure(2500, 0), 4)
    assert parts.shared_machine == Figure(pytest.approx(5), pytest.approx(0.4))
    assert parts.communication == Figure(pytest.approx(5), pytest.approx(0.5))
    assert parts.total == Figure(pytest.approx(10), pytest.approx(0.3))


def test_the_baselines_noise_reaches_communication_only_in_proportion() -> None:
    parts = split_loss(Figure(9000, 0), Figure(9500, 0), Figure(2500, 50), 4)  # ±2%
    assert parts.shared_machine.ci95 == pytest.approx(95 * 0.02)
    assert parts.communication.ci95 == pytest.approx(5 * 0.02)


def test_an_unknown_noise_stays_unknown_where_it_enters() -> None:
    parts = split_loss(Figure(9000, None), Figure(9500, 40), Figure(2500, 10), 4)
    assert parts.shared_machine.ci95 is not None
    assert parts.communication.ci95 is None
    assert parts.total.ci95 is None


def test_nothing_to_split_or_to_count() -> None:
    one = Figure(100, 1)
    with pytest.raises(ValueError, match="at least 2"):
        split_loss(one, one, one, 1)
    with pytest.raises(ValueError, match="at least 1"):
        efficiency_pct(one, one, 0)
    with pytest.raises(ValueError, match="divisor"):
        speedup(one, Figure(0, 0))


def test_karp_flatt_of_what_cannot_tell() -> None:
    assert karp_flatt(1.0, 1) is None
    assert karp_flatt(0.0, 4) is None


@given(rates, st.none() | st.floats(0, 1e3))
def test_one_gpu_is_its_own_baseline(rate: float, ci95: float | None) -> None:
    one = Figure(rate, ci95)
    assert efficiency_pct(one, one, 1) == Figure(100.0, 0.0)
    assert speedup(one, one) == Figure(1.0, 0.0)


@given(measured, measured, counts)
def test_efficiency_is_the_speedup_over_n(rate: Figure, one: Figure, n: int) -> None:
    times, percent = speedup(rate, one), efficiency_pct(rate, one, n)
    assert percent.value == pytest.approx(100 * times.value / n)
    assert percent.relative == pytest.approx(times.relative)


@given(st.floats(0, 1), counts)
def test_karp_flatt_finds_the_serial_part_of_amdahls_law(serial: float, n: int) -> None:
    times = 1 / (serial + (1 - serial) / n)
    assert karp_flatt(times, n) == pytest.approx(serial, abs=1e-9)


@given(counts)
def test_a_perfect_speedup_has_no_serial_part_and_none_has_it_all(n: int) -> None:
    assert karp_flatt(n, n) == pytest.approx(0, abs=1e-12)
    assert karp_flatt(1.0, n) == pytest.approx(1)


@given(measured, measured, measured, counts)
def test_the_parts_of_a_loss_are_the_whole(ddp: Figure, separate: Figure, one: Figure, n: int) -> None:
    parts = split_loss(ddp, separate, one, n)
    whole = 100 - efficiency_pct(ddp, one, n).value
    assert parts.total.value == pytest.approx(whole, rel=1e-9, abs=1e-9)
    # against each other, relative to the largest, since huge parts may cancel
    size = max(abs(parts.shared_machine.value), abs(parts.communication.value), 1)
    assert parts.shared_machine.value + parts.communication.value == pytest.approx(whole, abs=1e-9 * size)


@given(st.lists(measured, min_size=2, max_size=8))
def test_gpus_that_work_apart_lose_nothing_to_communication(gpus: list[Figure]) -> None:
    together = total(gpus)
    assert coupling_efficiency_pct(together, together) == Figure(100.0, 0.0)
    assert split_loss(together, together, gpus[0], len(gpus)).communication.value == 0
