"""Figures with intervals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.analysis.interval import Figure, pooled, quadrature, ratio, scaled, total

values = st.floats(1e-3, 1e9)
figures = st.builds(lambda value, share: Figure(value, value * share), values, st.floats(0, 0.5))


def test_a_figure_has_ends_and_a_relative_width() -> None:
    figure = Figure(200.0, 5.0)
    assert (figure.low, figure.high, figure.relative) == (195.0, 205.0, 0.025)


def test_without_an_interval_nothing_is_made_up() -> None:
    figure = Figure(200.0, None)
    assert (figure.low, figure.high, figure.relative) == (None, None, None)
    assert Figure(0.0, 1.0).relative is None
    known = Figure(100.0, 1.0)
    assert ratio(figure, known) == Figure(2.0, None)
    assert ratio(known, figure) == Figure(0.5, None)
    assert scaled(figure, 2) == Figure(400.0, None)
    assert total([figure, known]) == Figure(300.0, None)
    assert quadrature(3.0, None) is None


def test_relative_widths_add_in_quadrature() -> None:
    result = ratio(Figure(300.0, 9.0), Figure(100.0, 4.0))
    assert result.value == 3.0
    assert result.relative == pytest.approx(0.05)


def test_a_sum_of_gpus_that_work_apart() -> None:
    assert total([Figure(10.0, 3.0), Figure(20.0, 4.0)]) == Figure(30.0, 5.0)


def test_a_ratio_of_nothing_has_the_noise_of_nothing() -> None:
    assert ratio(Figure(0.0, 2.0), Figure(100.0, 50.0)) == Figure(0.0, 0.02)
    with pytest.raises(ValueError, match="divisor"):
        ratio(Figure(1.0, 0.1), Figure(0.0, 0.1))


def test_one_run_has_its_own_interval_and_stays_the_same_object() -> None:
    run = Figure(2777.0, 12.0)
    assert pooled([run]) is run
    with pytest.raises(ValueError, match="no run"):
        pooled([])


def test_repeats_have_students_interval_and_forget_their_own() -> None:
    assert pooled([Figure(99.0, 0.1), Figure(101.0, None)]) == Figure(100.0, pytest.approx(12.706))
    three = pooled([Figure(99.0, 0.1), Figure(100.0, 0.1), Figure(101.0, 0.1)])
    assert three == Figure(100.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))


@given(figures)
def test_a_figure_over_itself_is_exactly_one(figure: Figure) -> None:
    assert ratio(figure, figure) == Figure(1.0, 0.0)
    assert ratio(Figure(figure.value, None), Figure(figure.value, None)).ci95 is None, "equal is not the same"


@given(figures, figures)
def test_a_ratio_is_never_surer_than_its_parts(a: Figure, b: Figure) -> None:
    result, inverse = ratio(a, b), ratio(b, a)
    assert result.relative is not None
    assert inverse.relative == pytest.approx(result.relative, abs=1e-12)
    assert result.value * inverse.value == pytest.approx(1)
    for part in (a.relative, b.relative):
        assert part is not None
        assert result.relative >= part * (1 - 1e-9) - 1e-300  # the smallest of numbers is halved to nothing


@given(figures, st.floats(-1e3, 1e3))
def test_scaling_keeps_the_interval_around_the_value(figure: Figure, factor: float) -> None:
    result = scaled(figure, factor)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.value <= result.high


@given(st.lists(figures, min_size=1, max_size=16))
def test_the_aggregate_is_the_sum_over_gpus(gpus: list[Figure]) -> None:
    result = total(gpus)
    assert result.value == pytest.approx(sum(g.value for g in gpus))
    assert result.ci95 is not None
    assert max(g.ci95 or 0 for g in gpus) * (1 - 1e-9) <= result.ci95 <= sum(g.ci95 or 0 for g in gpus) * (1 + 1e-9)


@given(st.lists(values, min_size=2, max_size=8))
def test_more_repeats_alike_narrow_the_interval(runs: list[float]) -> None:
    once, twice = pooled([Figure(v, None) for v in runs]), pooled([Figure(v, None) for v in runs * 2])
    assert once.ci95 is not None
    assert twice.ci95 is not None
    assert twice.value == pytest.approx(once.value)
    assert twice.ci95 <= once.ci95


def test_a_ratio_covers_the_truth_19_times_in_20() -> None:
    source, hits = random.Random(3), 0
    for _ in range(2000):
        a = Figure(source.gauss(300, 6), 1.96 * 6)
        b = Figure(source.gauss(100, 1), 1.96 * 1)
        result = ratio(a, b)
        assert result.ci95 is not None
        hits += abs(result.value - 3) <= result.ci95
    assert 0.93 <= hits / 2000 <= 0.97
