"""A run's curves from the history: what a bin keeps, where things stand on either axis, and whose they are."""

from __future__ import annotations

import math

import pytest
from history import T0, a_whole_run, end, make_run, step, write

from lorawatch.run.directory import Gpu, RunDir
from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import GpuSample, RankStarted, Record
from lorawatch.storage.connection import writing
from lorawatch.storage.curves import Curves, RankRow, Thinned, run_curves, run_ranks
from lorawatch.storage.ingest import finish_run

NO_READINGS = dict.fromkeys(m.name for m in GPU_METRICS if m.over and m.name != "memory_bytes")


def known(curve: Thinned) -> list[tuple[float, float, float]]:
    """Left edge, lowest and highest of the bins that hold something."""
    return [
        (curve.start + i * curve.width, low, curve.high[i]) for i, low in enumerate(curve.low) if not math.isnan(low)
    ]


def at(curve: Thinned, place: float) -> tuple[float, float]:
    index = int((place - curve.start) // curve.width)
    return curve.low[index], curve.high[index]


def some(run: RunDir, **more: object) -> Curves:
    found = run_curves(run.run_id, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def started(rank: int, gpu: str | None = None, attempt: int = 0) -> RankStarted:
    return RankStarted(at=T0, attempt=attempt, rank=rank, local_rank=rank, world_size=2, host="h", pid=1, device="cuda",
                       gpu_uuid=gpu)  # fmt: skip


def two_ranks(steps: int = 2000) -> RunDir:
    """Two ranks on two GPUs. Rank 1 is slower at step 777 and its GPU takes 900 W in step 1,500."""
    cards = [Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku="NVIDIA H100 80GB HBM3", used=True) for i in (0, 1)]
    run = make_run("two", gpus=cards)
    for rank in (0, 1):
        write(
            run.rank_journal(rank),
            started(rank, f"GPU-{rank}"),
            *(
                step(n, rank, loss=50.0 if n == 1234 else 2.0 + rank, duration_s=5.0 if (n, rank) == (777, 1) else 0.5,
                     data_wait_s=0.001 * (rank + 1))
                for n in range(1, steps + 1)
            ),
        )  # fmt: skip
    samples: list[Record] = [
        GpuSample(
            sampled_at=T0 - 5 + 0.25 * tick, gpu_uuid=f"GPU-{card}", temperature_c=60.0 + card, memory_used_bytes=card + 1,
            power_w=900.0 if (card, tick) == (1, 20 + 2 * 1500 - 1) else 300.0 + card,
        )
        for tick in range(4 * (steps // 2 + 10))
        for card in (0, 1)
    ]  # fmt: skip
    write(run.host_journal("h"), *samples)
    end(run)
    finish_run(run)
    return run


def test_without_a_history_or_a_reading_there_are_no_curves() -> None:
    assert run_curves("x") is None
    assert run_ranks("x") == []
    finish_run(empty := a_whole_run("empty", steps=0))
    assert run_curves("x") is None
    assert run_curves(empty.run_id, axis="step") is None
    assert set(some(empty).series[None]) == {"power_w", "memory_bytes", "temperature_c"}


@pytest.mark.parametrize("axis", ["time", "step"])
@pytest.mark.parametrize("each_rank", [False, True])
def test_no_spike_is_hidden(axis: str, each_rank: bool) -> None:
    curves = some(two_ranks(), axis=axis, each_rank=each_rank, bins=20)
    mine = curves.series[1 if each_rank else None]
    assert len(mine["loss"].low) == 20
    assert max(h for h in mine["loss"].high if h == h) == 50.0
    assert min(low for low in mine["loss"].low if low == low) == (3.0 if each_rank else 2.5)
    assert min(low for low in mine["tok_s"].low if low == low) == (200.0 if each_rank else 400.0)
    assert max(h for h in mine["tok_s"].high if h == h) == (2000.0 if each_rank else 4000.0)
    assert max(h for h in mine["power_w"].high if h == h) == 900.0
    calm = [i for i, h in enumerate(mine["loss"].high) if h == h and h < 50]
    assert all(mine["loss"].mean[i] == (3.0 if each_rank else 2.5) for i in calm)


def test_over_steps_every_value_stands_at_its_step() -> None:
    run = two_ranks(300)
    curves = some(run, axis="step")
    assert (curves.begin, curves.end, curves.steps) == (1.0, 301.0, 300)
    loss = curves.series[None]["loss"]
    assert (loss.start, loss.width, len(loss.low)) == (1.0, 1.0, 300)
    assert at(curves.series[None]["at"], 10) == (T0 + 5.0, T0 + 5.0)
    # warm-up is no measured step
    assert math.isnan(curves.series[None]["tok_s"].low[0])
    assert at(curves.series[None]["tok_s"], 2) == (4000.0, 4000.0)
    # thousands of steps share bins of whole steps
    many = some(two_ranks(), axis="step", bins=300).series[None]
    assert (many["loss"].width, len(many["loss"].low)) == (7.0, 286)
    assert at(many["loss"], 1234) == (2.5, 50.0)
    assert at(many["power_w"], 1500) == (300.0, 900.0)


def test_a_sample_belongs_to_the_step_it_fell_into_and_one_outside_to_none() -> None:
    run = two_ranks(20)  # steps end at T0 + 0.5 … T0 + 10; samples from T0 - 5 to T0 + 15
    over_time = some(run, bins=10_000).series[None]["power_w"]
    assert len(known(over_time)) == 80
    over_steps = some(run, axis="step").series[None]["power_w"]
    assert [left for left, _, _ in known(over_steps)] == [float(n) for n in range(1, 21)]
    # a pause between steps is no step's
    gap = make_run("gap", ranks=1, gpus=[Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="s", used=True)])
    write(gap.rank_journal(0), started(0, "G"), step(1), step(2), step(3, ended_at=T0 + 60.5))
    moments = ((0.75, 111.0), (30.0, 999.0), (60.25, 333.0), (61.0, 999.0))
    write(gap.host_journal("h"), *(GpuSample(sampled_at=T0 + s, gpu_uuid="G", power_w=w) for s, w in moments))
    end(gap)
    finish_run(gap)
    assert known(some(gap, axis="step").series[None]["power_w"]) == [(2.0, 111.0, 111.0), (3.0, 333.0, 333.0)]


def test_each_rank_has_its_own_steps_and_its_own_gpu() -> None:
    run = two_ranks()
    for axis in ("time", "step"):
        series = some(run, axis=axis, each_rank=True).series
        assert sorted(series) == [0, 1]  # type: ignore[type-var]
        assert min(low for _, low, _ in known(series[0]["loss"])) == 2.0
        assert min(low for _, low, _ in known(series[1]["loss"])) == 3.0
        assert max(h for h in series[0]["power_w"].high if h == h) == 300.0
        assert max(h for h in series[1]["power_w"].high if h == h) == 900.0
        assert max(h for h in series[1]["temperature_c"].high if h == h) == 61.0
    together = some(run).series
    assert list(together) == [None]
    assert at(together[None]["temperature_c"], T0 + 100) == (60.0, 61.0)


def test_a_window_comes_in_finer_bins_and_knows_the_whole() -> None:
    run = two_ranks()
    whole = some(run)
    part = some(run, window=(T0 + 100, T0 + 110), bins=100)
    assert (part.begin, part.end) == (whole.begin, whole.end)
    assert part.window == pytest.approx((T0 + 100, T0 + 110))
    assert len(known(part.series[None]["loss"])) == 20, "each step by itself"
    steps = some(run, axis="step", window=(500.5, 510.2))
    assert steps.window == (500.0, 511.0)
    assert [left for left, _, _ in known(steps.series[None]["loss"])] == [float(n) for n in range(500, 511)]


def test_a_repeated_step_counts_as_the_last_attempt_computed_it() -> None:
    run = make_run("again", ranks=1)
    write(
        run.rank_journal(0),
        started(0),
        *(step(n, loss=9.0) for n in range(1, 11)),
        started(0, attempt=1),
        *(step(n, attempt=1, loss=1.0, ended_at=T0 + 100 + n / 2) for n in range(6, 21)),
    )
    end(run)
    finish_run(run)
    for each_rank in (False, True):
        curves = some(run, axis="step", each_rank=each_rank)
        loss = curves.series[0 if each_rank else None]["loss"]
        assert (curves.begin, curves.end) == (1.0, 21.0)
        assert loss.low == [9.0] * 5 + [1.0] * 15
        assert loss.high == loss.low
        both = some(run, each_rank=each_rank, bins=1000).series[0 if each_rank else None]["loss"]
        assert [low for _, low, _ in known(both)] == [9.0] * 10 + [1.0] * 15, "over time both attempts are seen"


def test_a_loss_that_is_no_number_is_counted_and_spoils_no_bin() -> None:
    run = make_run("nan", ranks=1)
    write(run.rank_journal(0), started(0), *(step(n) for n in range(1, 5)))
    end(run)
    finish_run(run)
    with writing() as connection:  # JSON has no word for these: other writers of the history may
        connection.execute("UPDATE steps SET loss = 'nan' WHERE step = 2")
        connection.execute("UPDATE steps SET loss = 'inf' WHERE step = 3")
        connection.execute("UPDATE steps SET loss = NULL WHERE step = 4")
    mine = some(run, axis="step").series[None]
    assert known(mine["loss"]) == [(1.0, 2.0, 2.0)]
    assert known(mine["loss_bad"]) == [(2.0, 1.0, 1.0), (3.0, 1.0, 1.0)]
    all_in_one = some(run, axis="step", bins=1).series[None]
    assert (all_in_one["loss"].low, all_in_one["loss"].high, all_in_one["loss_bad"].high) == ([2.0], [2.0], [2.0])


def test_ranks_side_by_side() -> None:
    first, second = run_ranks(two_ranks().run_id)
    assert first == RankRow(
        rank=0, steps=2000, tok_s=2000.0, step_p50_s=0.5, step_p95_s=0.5, data_wait_s=pytest.approx(0.001), memory_bytes=1,
        gpu_index=0, sku="NVIDIA H100 80GB HBM3", readings={**NO_READINGS, "power_w": 300.0, "temperature_c": 60.0},
    )  # fmt: skip
    assert (second.rank, second.gpu_index, second.readings["temperature_c"], second.memory_bytes) == (1, 1, 61.0, 2)
    assert second.tok_s == pytest.approx(1999 * 1000 / (1999 * 0.5 + 4.5))
    assert second.data_wait_s == pytest.approx(0.002)
    assert second.readings["power_w"] == pytest.approx(301.0 + 599 / 3999, abs=0.01)
    alone = make_run("cpu", ranks=1)
    write(alone.rank_journal(0), step(1), step(2, memory_reserved_bytes=7))
    end(alone)
    finish_run(alone)
    assert run_ranks(alone.run_id) == [
        RankRow(rank=0, steps=2, tok_s=2000.0, step_p50_s=0.5, step_p95_s=0.5, data_wait_s=None, memory_bytes=7,
                gpu_index=None, sku=None, readings=NO_READINGS)
    ]  # fmt: skip
