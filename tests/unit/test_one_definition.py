"""Figures that Python and the history's SQL both work out are the same figures."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
from history import T0, end, make_run, rows, step, write

from lorawatch.analysis import clocks, staleness
from lorawatch.analysis.loss import loss_over_labels, mean_loss
from lorawatch.analysis.missing import whole_sum
from lorawatch.analysis.thinning import Bins, bin_number
from lorawatch.analysis.throughput import percentile, rate
from lorawatch.run.clock_reasons import THROTTLED, ClockReason
from lorawatch.run.directory import Gpu
from lorawatch.run.follower import Follower
from lorawatch.run.records import GpuSample
from lorawatch.storage import expressions
from lorawatch.storage.engine import duckdb
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.past import read_past
from lorawatch.watching.watch import Watch

ROOT = Path(__file__).parents[2]


def asked(query: str, values: list[tuple[object, ...]], names: str) -> object:
    """The answer of a question about these rows."""
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE given ({names})")
        connection.executemany(f"INSERT INTO given VALUES ({', '.join('?' * len(values[0]))})", values)
        row = connection.execute(f"SELECT {query} FROM given").fetchone()
        assert row is not None
        return row[0]


def approx(value: float | None) -> object:
    return None if value is None else pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("amount", "seconds"), itertools.product((None, 0.0, 1000.0), (None, -1.0, 0.0, 0.5)))
def test_a_rate(amount: float | None, seconds: float | None) -> None:
    expected = 2 * amount if amount is not None and seconds == 0.5 else None
    assert rate(amount, seconds) == expected
    assert asked(expressions.rate("a", "s"), [(amount, seconds)], "a DOUBLE, s DOUBLE") == expected


RANKS = [(1.0, 10), (4.0, 30), (2.0, 0), (3.0, None), (None, 50), (None, None)]


@pytest.mark.parametrize("ranks", itertools.chain(*(itertools.combinations(RANKS, n) for n in (1, 2, 3))))
def test_the_loss_over_ranks(ranks: tuple[tuple[float | None, int | None], ...]) -> None:
    found = mean_loss([loss for loss, _ in ranks], [count for _, count in ranks])
    assert asked(expressions.MEAN_LOSS, list(ranks), "loss DOUBLE, label_tokens BIGINT") == approx(found)


def test_a_loss_is_weighted_by_label_tokens() -> None:
    assert mean_loss([1.0, 4.0], [10, 30]) == pytest.approx(3.25)
    assert mean_loss([1.0, 4.0], [None, None]) == 2.5
    assert mean_loss([1.0, 4.0], [0, 30]) == 4.0, "a rank without a label token has no weight"
    assert mean_loss([None, 4.0], [10, 30]) == 4.0
    assert mean_loss([None], [10]) is None
    assert loss_over_labels([10.0, 120.0], [10, 30]) == pytest.approx(3.25)
    assert loss_over_labels([], []) is None


@pytest.mark.parametrize("values", [(1.0,), (1.0, 2.0), (1.0, None), (None,)])
def test_a_sum_with_a_missing_part_is_missing(values: tuple[float | None, ...]) -> None:
    expected = None if None in values else sum(v for v in values if v is not None)
    assert whole_sum(values) == expected
    assert asked(expressions.whole_sum("v"), [(v,) for v in values], "v DOUBLE") == expected


def test_percentiles() -> None:
    source = random.Random(1)
    for count in (1, 2, 3, 40, 101):
        values = [source.random() for _ in range(count)]
        answer = asked(expressions.percentiles("v", 0.5, 0.95, 0.99), [(v,) for v in values], "v DOUBLE")
        assert answer == pytest.approx([percentile(values, share) for share in (0.5, 0.95, 0.99)], rel=1e-12)


def test_the_power_limit_throttles_nothing() -> None:
    assert not THROTTLED & ClockReason.POWER_CAP
    samples = [0, ClockReason.POWER_CAP, 0x40 | ClockReason.POWER_CAP, 0x10]
    for mask, expected in ((THROTTLED, 0.5), (ClockReason.POWER_CAP, 0.5), (0x40, 0.25)):
        assert clocks.share(samples, mask) == expected
        given: list[tuple[object, ...]] = [(None,), *((s,) for s in samples)]  # a sample without reasons does not count
        assert asked(expressions.share(mask), given, "event_reasons BIGINT") == expected
    assert clocks.share([], THROTTLED) is None
    migration = (ROOT / "storage" / "migrations" / "0005_power_capped.sql").read_text()
    assert f"event_reasons & {THROTTLED})" in migration
    assert f"event_reasons & {ClockReason.POWER_CAP})" in migration


def test_bins() -> None:
    source = random.Random(2)
    values = [(source.uniform(5.0, 9.0), source.gauss(0, 1)) for _ in range(300)]
    found = Bins(8)
    for place, value in values:
        found.put(bin_number(place, 5.0, 0.5), value, value)
    number = expressions.bin_number("x", "5.0", "0.5", "8")
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE given (x DOUBLE, y DOUBLE)")
        connection.executemany("INSERT INTO given VALUES (?, ?)", values)
        answers = connection.execute(
            f"SELECT {number} AS bin, {expressions.spread('y')} FROM given GROUP BY bin ORDER BY bin"
        ).fetchall()
    assert [(low, high) for _, low, high, _ in answers] == list(zip(found.low, found.high, strict=True))
    assert sum(v for _, v in values) / 300 == pytest.approx(
        sum(mean * sum(1 for x, _ in values if bin_number(x, 5.0, 0.5) == b) for b, _, _, mean in answers) / 300
    )
    halves = found.halved()
    assert list(halves.low) == [min(found.low[n : n + 2]) for n in range(0, 8, 2)]
    assert list(halves.high) == [max(found.high[n : n + 2]) for n in range(0, 8, 2)]
    found.put(10, math.nan, math.nan)
    assert len(found) == 8, "no number is no value"


def test_a_step_over_its_ranks_is_the_same_live_and_in_the_history() -> None:
    run = make_run(ranks=3)
    source = random.Random(3)
    for rank in range(3):
        write(
            run.rank_journal(rank),
            *(
                step(n, rank, loss=source.uniform(1, 3) if source.random() > 0.2 else None, duration_s=source.uniform(0.3, 0.6),
                     label_tokens=source.choice([None, 0, 100, 700]), tokens=source.choice([None, 900, 1000, 1100]))
                for n in range(1, 41)
            ),
        )  # fmt: skip
    end(run)
    finish_run(run)
    view = Follower(run)
    view.view.world_size = 3
    view.poll()
    stored = rows("SELECT step, tokens, duration_s, tok_s, loss FROM v_steps ORDER BY step")
    assert len(stored) == 40
    for number, tokens, seconds, tok_s, loss in stored:
        live = next(total for total in view.view.steps if total.step == number)
        assert (live.tokens, live.duration_s, live.tok_s, live.loss) == (
            tokens, approx(seconds), approx(tok_s), approx(loss)
        )  # fmt: skip
    assert {total.tokens is None for total in view.view.steps} == {True, False}


def test_a_curve_seeded_from_the_history_keeps_the_same_extremes() -> None:
    card = Gpu(host="h", gpu_index=0, gpu_uuid="G", sku="s", used=True)
    run = make_run(ranks=1, gpus=[card])
    source = random.Random(4)
    seconds, watts = {2: 0.1, 2000: 2.0}, {0: 900.0, 1999: 10.0}  # the extremes are in the first and in the last bin
    write(
        run.rank_journal(0),
        *(step(n, duration_s=seconds.get(n, source.uniform(0.3, 0.6))) for n in range(1, 2001)),
    )
    samples = [
        GpuSample(sampled_at=T0 + 0.5 * n, gpu_uuid="G", power_w=watts.get(n, source.uniform(50, 700)))
        for n in range(2000)
    ]
    write(run.host_journal("h"), *samples)
    end(run)
    finish_run(run)
    past = read_past(run.run_id)
    assert past is not None
    watch = Watch(run.info())
    Follower(run, feed=watch.feed).poll()
    panes = {pane.key: pane.curves for pane in watch.frame(T0 + 1000).panes}
    for name, bins in (("power_w", past.gpu_bins["G"]), ("tok_s", past.rank_bins[0]), ("step_ms", past.rank_bins[0])):
        curve = panes["G" if name == "power_w" else "rank-0"][name]
        lows, highs = ([b[n] for b in bins if b[0] == name] for n in (2, 3))
        assert min(lows) == pytest.approx(min(v for v in curve.low if v == v), rel=1e-9)
        assert max(highs) == pytest.approx(max(v for v in curve.high if v == v), rel=1e-9)


def test_one_age_makes_a_reading_stale() -> None:
    assert staleness.stale_age(None) is None
    assert staleness.stale_age(staleness.STALE_S - 0.01) is None
    assert staleness.stale_age(staleness.STALE_S) == staleness.STALE_S
    sources = [p for name in ("lorawatch", "screens") for p in (ROOT / name).rglob("*.py") if "analysis" not in p.parts]
    assert not [p for p in sources if "STALE_S =" in p.read_text()]
