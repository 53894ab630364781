"""What a display sees of a run, from its lines alone."""

from __future__ import annotations

import pytest

from lorawatch.recorder.hang import check_hang, suspects
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.follower import Follower
from lorawatch.run.journal import JournalWriter
from lorawatch.run.live import LiveView
from lorawatch.run.records import GpuSample, RankStarted, Step


def started(rank: int, attempt: int = 0) -> RankStarted:
    return RankStarted(
        at=0.0, attempt=attempt, rank=rank, local_rank=rank, world_size=2, host="h", pid=1, device="cpu", steps_total=10
    )


def step(rank: int, n: int, seconds: float = 1.0, attempt: int = 0, **more: object) -> Step:
    return Step(attempt=attempt, rank=rank, step=n, ended_at=n * 1.0, duration_s=seconds, tokens=100, **more)  # type: ignore[arg-type]


def view_of(*lines: object) -> LiveView:
    view = LiveView()
    for line in lines:
        view.feed(line)  # type: ignore[arg-type]
    return view


def test_a_step_counts_when_all_ranks_have_done_it_and_takes_as_long_as_the_slowest() -> None:
    view = view_of(started(0), started(1), step(0, 1, 1.0))
    assert view.step == 0
    view.feed(step(1, 1, 2.0))
    assert view.step == 1
    assert view.tok_s == pytest.approx(200 / 2.0)
    assert view.ranks[0].tok_s == pytest.approx(100.0)


def test_loss_is_the_mean_over_all_labels() -> None:
    view = view_of(started(0), started(1), step(0, 1, loss=1.0, label_tokens=10), step(1, 1, loss=4.0, label_tokens=30))
    assert view.loss == pytest.approx((1.0 * 10 + 4.0 * 30) / 40)


def test_warm_up_is_in_no_rate() -> None:
    view = view_of(started(0), started(1))
    for rank in (0, 1):
        view.feed(step(rank, 1, 50.0, phase="warmup"))
    assert view.tok_s is None
    for rank in (0, 1):
        view.feed(step(rank, 2, 1.0))
    assert view.tok_s == pytest.approx(200.0)
    assert view.eta_s == pytest.approx(8.0)


def test_a_restart_repeats_steps_without_counting_them_twice() -> None:
    view = view_of(started(0), started(1))
    for n in (1, 2, 3):
        view.feed(step(0, n))
        view.feed(step(1, n))
    view.feed(started(0, 1))
    view.feed(started(1, 1))
    for n in (1, 2):
        view.feed(step(0, n, attempt=1))
        view.feed(step(1, n, attempt=1))
    assert view.step == 2
    assert view.tokens == 400


def test_a_reading_that_is_missing_stays_missing_and_the_last_one_is_kept() -> None:
    view = view_of(
        GpuSample(sampled_at=1.0, gpu_uuid="a", power_w=100.0), GpuSample(sampled_at=2.0, gpu_uuid="a", sm_clock_mhz=5)
    )
    assert view.gpus["a"].power_w == 100.0
    assert view.gpus["a"].temperature_c is None
    assert view.power_w({"a"}) == 100.0
    view.feed(GpuSample(sampled_at=2.0, gpu_uuid="b"))
    assert view.power_w({"a", "b"}) is None  # half the watts would be a lie


def test_a_follower_reads_each_line_of_each_journal_once() -> None:
    run = RunDir.create(RunInfo(run_id="", name="x", created_at=1.0, host="h", user="u", world_size=2))
    follower = Follower(run)
    for rank in (0, 1):
        writer = JournalWriter(run.rank_journal(rank))
        writer.append(started(rank))
        writer.append(step(rank, 1))
        writer.close()
    assert len(follower.poll()) == 4
    assert follower.poll() == []
    assert follower.view.step == 1


def test_a_silence_is_judged_by_the_runs_own_pace() -> None:
    assert check_hang(29, 0.1, 300).level == "ok"
    assert check_hang(31, 0.1, 300).level == "warn"
    assert check_hang(31, 60.0, 300).level == "ok"  # its steps take a minute
    assert check_hang(301, 0.1, 300).level == "end"
    assert check_hang(10_000, 0.1, 0).level == "warn"  # 0 never ends a run
    assert suspects({0: 5, 1: 4, 2: 5}, 3) == [1]
    assert suspects({0: 5, 1: 5}, 2) == []
