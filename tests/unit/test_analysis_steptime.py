"""The step-time model: what it finds, predicts and refuses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.analysis.interval import Figure
from lorawatch.analysis.steptime import CannotExtrapolate, Point, StepTimeModel, fit

TOKENS = 1024.0


def published(gpus: int, tok_s: float, share: float | None = None) -> Point:
    seconds = gpus * TOKENS / tok_s
    return Point(gpus, Figure(seconds, None if share is None else share * seconds), TOKENS)


def at(gpus: int, seconds: float, ci95: float | None = 0.0) -> Point:
    return Point(gpus, Figure(seconds, ci95), TOKENS)


def ring(gpus: int, compute: float = 1.0, allreduce: float = 0.1) -> float:
    return compute + allreduce * 2 * (gpus - 1) / gpus


def interval(model: StepTimeModel, gpus: int) -> tuple[float, float]:
    figure = model.tok_s(gpus)
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, figure.high


def test_three_published_points_say_what_four_gpus_do() -> None:
    model = fit([published(1, 2777), published(2, 5429), published(3, 8083)])
    assert model.tok_s(4).value == pytest.approx(10737.3, abs=0.1)
    low, high = interval(model, 4)
    assert low < 10717 < high, "as published"
    assert (high - low) / 2 / 10737 < 0.02
    assert model.compute_s.value == pytest.approx(0.36874, abs=1e-5)
    assert model.allreduce_s.value == pytest.approx(0.008486, abs=1e-6)
    assert [model.extrapolated(n) for n in (1, 2, 3, 4)] == [False, False, False, True]


def test_two_points_have_the_interval_of_their_own_or_none() -> None:
    model = fit([published(1, 2777, 0.005), published(2, 5429, 0.005)])
    low, high = interval(model, 4)
    assert low < 10717 < high
    unknown = fit([published(1, 2777), published(2, 5429)])
    assert unknown.tok_s(4) == Figure(pytest.approx(model.tok_s(4).value), None)
    assert unknown.compute_s.ci95 is None


def test_points_that_fit_by_chance_do_not_make_a_sure_model() -> None:
    exact = fit([at(n, ring(n), None) for n in (1, 2, 4)])
    assert exact.tok_s(8).relative == pytest.approx(fit([at(n, ring(n)) for n in (1, 2, 4)]).tok_s(8).relative)
    assert (exact.tok_s(8).relative or 0) > 0.01


def test_points_off_the_line_widen_an_interval_that_comes_from_them() -> None:
    noisy = [at(1, 1.004, None), at(2, 1.092, None), at(4, 1.154, None)]
    assert (fit(noisy).tok_s(8).relative or 0) > 2 * (
        fit([at(n, ring(n), None) for n in (1, 2, 4)]).tok_s(8).relative or 1
    )


def test_a_surer_point_weighs_more() -> None:
    base = [at(1, 1.0, 0.001), at(2, 1.1, 0.001)]
    pulled, ignored = fit([*base, at(4, 1.16, 0.001)]), fit([*base, at(4, 1.16, 0.2)])
    assert pulled.step_s(4).value == pytest.approx(1.1565, abs=0.0005)
    assert ignored.step_s(4).value == pytest.approx(1.15, abs=0.0005)


def test_a_point_without_an_interval_weighs_as_the_least_sure_other() -> None:
    points = [at(1, 1.0, 0.001), at(2, 1.1, 0.05)]
    mixed, told = fit([*points, at(4, 1.17, None)]), fit([*points, at(4, 1.17, 1.17 * 0.05 / 1.1)])
    assert mixed.step_s(8).value == pytest.approx(told.step_s(8).value)
    assert mixed.step_s(8).ci95 is not None


def test_the_time_of_a_token_serves_as_well_as_that_of_a_step() -> None:
    rates = {1: 2777.0, 2: 5429.0, 3: 8083.0}
    model = fit([Point(n, Figure(n / rate, None)) for n, rate in rates.items()])
    assert model.tok_s(4).value == pytest.approx(10737.3, abs=0.1)
    assert model.tok_s(4).ci95 == pytest.approx(fit([published(n, r) for n, r in rates.items()]).tok_s(4).ci95)


def test_more_repeats_narrow_the_prediction() -> None:
    points = [at(n, ring(n), 0.02) for n in (1, 2)]
    assert (fit(points * 4).tok_s(8).ci95 or 0) < (fit(points).tok_s(8).ci95 or 0)


def test_steps_that_hardly_get_faster_are_flat() -> None:
    model = fit([at(1, 1.000, 0.01), at(2, 0.998, 0.01)])
    assert model.allreduce_s.value == 0
    assert model.step_s(2).value == model.step_s(8).value == pytest.approx(0.999, abs=1e-4)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([], "nothing measured"),
        ([at(1, 1.0)], "only 1 GPU measured"),
        ([at(4, 1.0), at(4, 1.01)], "only 4 GPUs measured"),
        ([at(4, 1.0), at(6, 1.01)], "too close"),
        ([at(1, 1.0, 0.01), at(2, 0.9, 0.01)], "faster from 1 to 2 GPUs"),
        ([at(1, 1.0), Point(2, Figure(1.1, 0.0), 2 * TOKENS)], "1024 to 2048"),
        ([at(1, 1.0), at(2, 1.3), at(4, 1.15)], "measured on 2 GPUs, 1.3 s, contradicts"),
        ([at(1, 1.0), at(2, 1.3, None), at(4, 1.15, None)], "contradicts"),
        ([at(1, 1.0), at(2, 0.0)], "no measurement"),
        ([at(1, 1.0), at(2, float("nan"))], "no measurement"),
        ([at(0, 1.0), at(2, 1.0)], "no measurement"),
        ([at(2, 1.0), at(4, 3.0)], "whole step"),
    ],
)
def test_what_the_points_cannot_say_is_refused_with_a_reason(points: list[Point], why: str) -> None:
    with pytest.raises(CannotExtrapolate, match=why):
        fit(points)


def test_too_far_out_is_refused() -> None:
    model = fit([at(1, 1.0), at(2, 1.1)])
    assert model.tok_s(16).value > 0
    with pytest.raises(CannotExtrapolate, match="17 GPUs are too far from the 2 that were measured: at most 16"):
        model.tok_s(17)
    with pytest.raises(CannotExtrapolate, match="0 is no number"):
        model.step_s(0)
    assert issubclass(CannotExtrapolate, ValueError)


def test_two_counts_apart_do_without_one_gpu() -> None:
    model = fit([at(2, ring(2)), at(4, ring(4))])
    assert model.step_s(1).value == pytest.approx(1.0)
    assert model.extrapolated(1)


@given(
    st.floats(1e-3, 1e3),
    st.floats(0, 0.5),
    st.lists(st.integers(2, 16), min_size=1, max_size=5, unique=True),
    st.integers(1, 64),
)
def test_what_follows_the_formula_is_found_again(compute: float, share: float, counts: list[int], gpus: int) -> None:
    allreduce = share * compute
    model = fit([at(n, ring(n, compute, allreduce), 0.01 * compute) for n in (1, *counts)])
    gpus = min(gpus, 8 * max(counts))
    assert model.compute_s.value == pytest.approx(compute, rel=1e-6)
    assert model.allreduce_s.value == pytest.approx(allreduce, abs=1e-6 * compute)
    step = model.step_s(gpus)
    assert step.value == pytest.approx(ring(gpus, compute, allreduce), rel=1e-6)
    assert step.ci95 is not None
    assert model.tok_s(gpus).value == pytest.approx(gpus * TOKENS / step.value)
    assert model.tok_s(gpus).relative == pytest.approx(step.relative)


@given(st.floats(0, 0.5), st.integers(1, 15))
def test_more_gpus_never_shorten_a_predicted_step(share: float, gpus: int) -> None:
    model = fit([at(n, ring(n, 1.0, share), 0.01) for n in (1, 2)])
    assert model.step_s(gpus).value <= model.step_s(gpus + 1).value * (1 + 1e-12)
    assert model.tok_s(gpus).value < model.tok_s(gpus + 1).value


@pytest.mark.parametrize("own", [0.0, 0.01])
def test_the_next_measurement_lies_in_19_of_20_predictions(own: float) -> None:
    source, hits, made = random.Random(4), 0, 0
    share = (0.01**2 + own**2) ** 0.5 / 1.96  # what differs from run to run, and within a run
    for _ in range(2000):
        points = [at(n, ring(n) * source.gauss(1, share), own * ring(n)) for n in (1, 2, 4)]
        try:
            step = fit(points).step_s(8)
        except CannotExtrapolate:
            continue
        assert step.ci95 is not None
        made += 1
        hits += abs(ring(8) * source.gauss(1, share) - step.value) <= step.ci95
    assert made > 0.95 * 2000
    assert 0.93 <= hits / made <= 0.97
