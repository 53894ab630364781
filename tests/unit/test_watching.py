"""Frames, curves and alerts: what a screen is told, from lines alone."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from history import DATA, T0, make_run, step

from lorawatch.run.directory import Gpu, RunDir, RunState
from lorawatch.run.follower import Follower
from lorawatch.run.records import Event, GpuSample, RankStarted
from lorawatch.screens.live.panes import arrange
from lorawatch.watching.curves import BINS, Curve
from lorawatch.watching.frame import Frame
from lorawatch.watching.replay import Replay, line_time
from lorawatch.watching.watch import Watch

CARD = Gpu(host="h", gpu_index=0, gpu_uuid="GPU-0", sku="NVIDIA H100", memory_total_bytes=80 * 2**30, used=True)


def started(rank: int, world: int = 2, uuid: str | None = None) -> RankStarted:
    return RankStarted(
        at=T0, attempt=0, rank=rank, local_rank=rank, world_size=world, host="h", pid=1,
        device="cuda" if uuid else "cpu", gpu_uuid=uuid, steps_total=100,
    )  # fmt: skip


def words(frame: Frame) -> set[str]:
    return {a.kind for a in frame.alerts}


def test_a_curve_keeps_every_spike_however_long_it_grows() -> None:
    curve = Curve()
    source = random.Random(1)
    for n in range(200_000):
        curve.add(T0 + 0.2 * n, 1e6 if n == 123_457 else -5.0 if n == 77 else source.random())
    data = curve.data()
    assert data is not None
    assert len(data.low) <= BINS
    columns = [c for c in data.columns(data.start, data.end, 60) if c is not None]
    assert max(high for _, high in columns) == 1e6
    assert min(low for low, _ in columns) == -5.0
    assert len(columns) == 60
    assert data.end - data.start >= 0.2 * 199_999


def test_a_sliding_curve_forgets_the_oldest_and_a_clock_that_steps_back_does_no_harm() -> None:
    curve = Curve(width_s=1.0, bins=16, sliding=True)
    for n in range(100):
        curve.add(T0 + n, float(n))
    curve.add(T0 - 1e6, 3.0)
    curve.add(T0 + 1e7, 4.0)
    data = curve.data()
    assert data is not None
    assert len(data.low) <= 16
    assert data.high[-1] == 4.0


def test_tokens_per_joule_are_of_the_recent_steps_and_not_of_the_present_watts() -> None:
    run = make_run(ranks=1, gpus=[CARD])
    watch = Watch(run.info())
    watch.feed(started(0, 1, "GPU-0"))
    for n in range(1, 31):
        watch.feed(GpuSample(sampled_at=T0 + n, gpu_uuid="GPU-0", power_w=400.0))
        watch.feed(step(n, 0, ended_at=T0 + n, duration_s=1.0, tokens=8000))
    watch.feed(GpuSample(sampled_at=T0 + 33, gpu_uuid="GPU-0", power_w=70.0))
    head = watch.frame(T0 + 33, RunState(state="running")).head
    assert head is not None
    assert head.power_w == 70.0
    assert head.tok_per_j == pytest.approx(20.0)


def test_a_long_loading_does_not_push_the_steps_into_a_corner() -> None:
    run = make_run(ranks=1, gpus=[CARD])
    watch = Watch(run.info())
    watch.feed(GpuSample(sampled_at=T0 - 600, gpu_uuid="GPU-0", power_w=60.0))
    assert watch.frame(T0).begin == T0 - 600
    for n in range(1, 41):
        watch.feed(step(n, 0, ended_at=T0 + n, duration_s=1.0))
    frame = watch.frame(T0 + 40)
    assert frame.begin == pytest.approx(T0 - 10)
    assert frame.origin == T0 - 600
    for n in range(41, 4001):
        watch.feed(step(n, 0, ended_at=T0 + n, duration_s=1.0))
    assert watch.frame(T0 + 4000).begin == T0 - 600, "a long run is shown whole"


def test_slow_readings_leave_no_holes_but_a_long_silence_does() -> None:
    curve = Curve()
    for second in (0, 1, 2, 3, 20, 21):
        curve.add(T0 + second, 50.0)
    data = curve.data()
    assert data is not None
    columns = data.columns(T0, T0 + 22, 88)
    assert all(columns[:13])
    assert columns[40] is None


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        ({"memory_used_bytes": int(79.5 * 2**30)}, "vram"),
        ({"event_reasons": 0x40}, "throttled"),
    ],
)
def test_a_gpu_in_trouble_is_told_with_a_word(samples: dict[str, int], kind: str) -> None:
    run = make_run(ranks=1, gpus=[CARD])
    watch = Watch(run.info())
    for n in range(10):
        watch.feed(GpuSample(sampled_at=T0 + n, gpu_uuid="GPU-0", power_w=300.0, **samples))  # type: ignore[arg-type]
    frame = watch.frame(T0 + 9.1, RunState(state="running"))
    assert kind in words(frame)
    assert "stale" not in words(frame)
    assert words(watch.frame(T0 + 20, RunState(state="running"))) >= {kind, "stale"}
    assert "stale" not in words(watch.frame(T0 + 20, RunState(state="completed", ended_at=T0 + 9.2)))


def test_a_power_cap_is_a_mark_and_no_alert() -> None:
    watch = Watch(make_run(ranks=1, gpus=[CARD]).info())
    for n in range(10):
        watch.feed(GpuSample(sampled_at=T0 + n, gpu_uuid="GPU-0", event_reasons=4 if n % 2 else 0))
    frame = watch.frame(T0 + 9, RunState(state="running"))
    assert frame.panes[0].capped == pytest.approx(0.5)
    assert "throttled" not in words(frame)


def test_straggler_nan_loss_silence_restart_and_a_lost_recorder_are_alerts() -> None:
    watch = Watch(make_run(ranks=2).info())
    watch.feed(started(0))
    watch.feed(started(1))
    for n in range(1, 21):
        for rank in (0, 1):
            watch.feed(step(n, rank, duration_s=0.5 + 0.2 * rank, loss=None if n == 20 else 2.0))
    watch.feed(
        Event(at=T0 + 10, kind="nan_loss", severity="error", rank=1, message="rank 1: the loss is NaN at step 20")
    )
    frame = watch.frame(T0 + 11, RunState(state="running"))
    assert words(frame) == {"straggler", "nan_loss"}
    assert [p.key for p in frame.panes if p.alerts] == ["rank-1"]
    assert "slow" in words(watch.frame(T0 + 60, RunState(state="running")))
    lost = watch.frame(T0 + 11, RunState(state="running"), recorder_alive=False)
    assert "no_recorder" in words(lost)
    assert lost.head is not None
    assert lost.head.state == "lost"
    watch.feed(RankStarted(at=T0 + 70, attempt=1, rank=0, local_rank=0, world_size=2, host="h", pid=1, device="cpu"))
    assert "restarted" in words(watch.frame(T0 + 71, RunState(state="running")))


def test_a_replay_shows_at_a_moment_what_live_showed_then(lorawatch_home: Path) -> None:
    """The real H100 run: its journals as they were at a moment, tailed, against the replay at that moment."""
    source = RunDir(DATA / "h100_run" / "0gq2zx6h")
    folder = lorawatch_home / "runs" / "0gq2zx6h"
    shutil.copytree(source.root, folder)
    replay = Replay(RunDir(folder))
    moments = [replay.begin + share * (replay.end - replay.begin) for share in (0.2, 0.75, 0.8, 0.97, 0.5)]
    from lorawatch.run.journal import line_decoder

    for moment in moments:
        at_the_time = lorawatch_home / f"then-{moment}" / "0gq2zx6h"
        shutil.copytree(source.root, at_the_time)
        for path in (at_the_time / "journal").iterdir():
            lines = [x for x in path.read_bytes().splitlines(True) if line_time(line_decoder.decode(x)) <= moment]
            path.write_bytes(b"".join(lines))
        watch = Watch(source.info())
        Follower(RunDir(at_the_time), feed=watch.feed).poll()
        replay.seek(moment)
        assert replay.frame().head == watch.frame(moment, replay.state()).head
        assert replay.frame().panes == watch.frame(moment, replay.state()).panes
        assert replay.frame().alerts == watch.frame(moment, replay.state()).alerts
    replay.seek(replay.end + 100)
    end = replay.frame()
    assert end.head is not None
    assert (end.head.state, end.head.step) == ("completed", 60)
    replay.seek(replay.begin)
    assert replay.state().state == "starting"


@pytest.mark.parametrize(
    ("count", "width", "height"), [(8, 160, 36), (2, 160, 36), (1, 80, 13), (2, 80, 13), (4, 120, 26)]
)
def test_all_panes_fit_without_scrolling(count: int, width: int, height: int) -> None:
    columns, tall = arrange(count, width, height)
    assert -(-count // columns) * tall <= height
    assert width // columns >= 30
    assert tall >= 6


def test_a_long_run_seeded_from_the_history_shows_what_its_journals_say(lorawatch_home: Path) -> None:
    from lorawatch.storage.ingest import ingest_run
    from lorawatch.storage.past import read_past

    folder = lorawatch_home / "runs" / "0gq2zx6h"
    shutil.copytree(DATA / "h100_run" / "0gq2zx6h", folder)
    run = RunDir(folder)
    assert read_past(run.run_id) is None
    rank = run.rank_journal(0)
    lines = rank.read_bytes().splitlines(True)
    rank.write_bytes(b"".join(lines[:-12]))  # the history knows the run up to here
    ingest_run(run)
    rank.write_bytes(b"".join(lines))
    past = read_past(run.run_id)
    assert past is not None
    seeded, whole = Watch(run.info()), Watch(run.info())
    seeded.seed(past)
    read = Follower(run, feed=seeded.feed, offsets=past.offsets).poll()
    assert len(read) == 12
    Follower(run, feed=whole.feed).poll()
    at = run.state().ended_at or 0.0
    one, other = seeded.frame(at - 1, RunState(state="running")), whole.frame(at - 1, RunState(state="running"))
    assert one.head is not None
    assert other.head is not None
    rates = ("tok_s", "tok_per_j", "mfu")  # over times that the history keeps to the microsecond
    assert [getattr(one.head, n) for n in rates] == pytest.approx([getattr(other.head, n) for n in rates], rel=1e-6)
    others = dict.fromkeys((*rates, "loss_curve"))
    assert replace(one.head, **others) == replace(other.head, **others)
    assert one.alerts == other.alerts
    assert [e.message for e in one.events] == [e.message for e in other.events]
    assert [e.at for e in one.events] == pytest.approx([e.at for e in other.events])  # microseconds in the history
    for mine, theirs in zip(one.panes, other.panes, strict=True):
        assert mine.values == theirs.values
        assert mine.note == theirs.note
        assert mine.curves.keys() == theirs.curves.keys()
        for name, curve in theirs.curves.items():
            assert min(v for v in mine.curves[name].low if v == v) == min(v for v in curve.low if v == v), name
            assert max(v for v in mine.curves[name].high if v == v) == max(v for v in curve.high if v == v), name
