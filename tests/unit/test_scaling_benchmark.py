"""The arithmetic and the plan of the scaling benchmark: what it says of figures that are known."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import recording_on_off
from gpu_recording import ratios
from gpu_scaling import first_table, slim
from scaling_words import RankFigures, extrapolations, loss_words, pace_words, rank_lines, turn_by_turn_pct

from lorawatch.analysis.interval import Figure


def ring(gpus: int, compute_s: float = 0.058, gradient_s: float = 0.0004) -> Figure:
    """tok/s of so many GPUs whose steps of 1,024 tokens follow a ring's all-reduce exactly."""
    rate = gpus * 1024 / (compute_s + gradient_s * 2 * (gpus - 1) / gpus)
    return Figure(rate, 0.001 * rate)


def test_each_count_is_held_against_the_fit_to_fewer() -> None:
    found, refused = extrapolations({n: ring(n) for n in (1, 2, 4, 8)}, 1024)
    assert [(e.gpus, e.fitted_to) for e in found] == [(4, (1, 2)), (8, (1, 2, 4))]
    assert refused == []
    for one in found:
        assert one.epoch_time_off_pct == pytest.approx(0, abs=1e-6)
    slow = Figure(0.9 * ring(4).value, 1)
    (off,), _ = extrapolations({1: ring(1), 2: ring(2), 4: slow}, 1024)
    assert off.epoch_time_off_pct == pytest.approx(-10)  # the epoch was said to take a tenth less than it took


def test_two_counts_can_be_fitted_and_leave_nothing_to_check() -> None:
    found, refused = extrapolations({1: ring(1), 2: ring(2)}, 1024)
    assert found == []
    assert refused == [
        "measured were 1 and 2 GPUs: the model takes two counts to fit, and a third, larger one to be held against"
    ]
    found, (why,) = extrapolations({1: Figure(1000, 10), 2: Figure(3000, 10), 4: Figure(4000, 10)}, 1024)
    assert found == []
    assert why.startswith("4 GPUs from 1 and 2 GPUs: steps became faster")


def test_what_burdens_a_whole_turn_falls_out_of_the_efficiency() -> None:
    hot = [1.0, 0.9, 0.8]
    found = turn_by_turn_pct([100 * h for h in hot], [198 * h for h in hot], 2)
    assert found is not None
    assert found.value == pytest.approx(99)
    assert found.ci95 == pytest.approx(0, abs=1e-9)
    assert turn_by_turn_pct([], [], 2) is None


def test_the_slowest_gpu_is_named_with_what_it_allows() -> None:
    figures = [
        RankFigures(1, "ddp", 0, 0.0580, 0.0590, 0.0001, 690, 1600, 0.9),
        RankFigures(2, "separate", 1, 0.0586, 0.0592, 0.0002, 689, 1580, 1.0),
        RankFigures(2, "separate", 0, 0.0581, 0.0590, 0.0001, 690, 1600, 0.9),
        RankFigures(2, "ddp", 0, 0.0588, 0.0595),
        RankFigures(2, "ddp", 1, 0.0588, 0.0595),
    ]
    alone, coupled, apart = rank_lines(figures)
    assert alone == (
        "1 —        step p50 58.00 p95 59.00 ms | data wait ≤ 0.01% | 1,600 MHz | 690 W | 90 % of samples at the power cap"
    )
    assert coupled.startswith("2 ddp      step p50 58.80 58.80 p95 59.50 59.50 ms | ")
    assert "rank 1 slowest, 0.86% behind rank 0 | data wait ≤ 0.02% | 1,600 1,580 MHz" in apart
    words = pace_words(figures, 2)
    assert words is not None and "rank 1 takes 58.60 ms" in words and "at most 98.98%" in words
    assert pace_words(figures, 4) is None


def test_a_loss_that_cannot_be_split_says_why() -> None:
    from types import SimpleNamespace

    assert loss_words(SimpleNamespace(split=None)).startswith("no separate runs")  # type: ignore[arg-type]


def test_recorded_and_unrecorded_halves_take_turns_at_being_first() -> None:
    assert recording_on_off.turns(3) == [True, False, False, True, True, False]
    assert recording_on_off.total_steps(3, 60) == 24 + 6 * 66 + 1
    seconds = {True: 2.0, False: 1.9}
    lines = [{"on": on, "seconds": seconds[on]} for on in recording_on_off.turns(3)]
    assert ratios(lines) == pytest.approx([0.95] * 3)


def test_an_archive_holds_a_run_without_what_test_data_needs_no_copy_of() -> None:
    names = ["runs/abc", "runs/abc/run.json", "runs/abc/journal/rank-0.jsonl", "runs/abc/adapter", "runs/abc/adapter/x"]
    kept = [member.name for name in names if (member := slim(tarfile.TarInfo(name))) is not None]
    assert kept == names[:3]
    assert first_table("words\n\n| a |\n|---|\n| 1 |\n\nmore\n\n| b |") == "| a |\n|---|\n| 1 |"
