"""Time and energy of an epoch, and numbers of tokens as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.analysis.epoch import Span, epoch_energy_kwh, epoch_time_s, parse_tokens, settling_share
from lorawatch.analysis.interval import Figure

rates = st.builds(lambda value, share: Figure(value, value * share), st.floats(1, 1e7), st.floats(0, 0.99))


def test_published_epochs() -> None:
    assert epoch_time_s(50_000_000, Figure(10717, None)).value / 3600 == pytest.approx(1.296, abs=5e-4)
    assert epoch_time_s(5_000_000, Figure(2777, None)).value / 60 == pytest.approx(30.0, abs=0.05)
    # 771.7 W for as long
    assert epoch_energy_kwh(50_000_000, 10717 / 771.7) == pytest.approx(0.7717 * 1.296, abs=1e-3)


def test_an_interval_turns_around() -> None:
    assert epoch_time_s(1000, Figure(10, 5)) == Span(100, pytest.approx(1000 / 15), 200)


def test_a_short_window_on_a_card_that_settles_widens_the_slow_end_alone() -> None:
    rate = Figure(100, 1)
    short, long, unknown = (epoch_time_s(1000, rate, window) for window in (2.0, 200.0, None))
    assert (short.value, short.low) == (long.value, long.low) == (unknown.value, unknown.low)
    assert unknown.high == pytest.approx(1000 / 99)
    assert short.high == pytest.approx(1000 / 99 * (1 + 0.015 / 1.1 + 0.005))
    assert long.high == pytest.approx(1000 / 99, rel=0.002)
    assert settling_share(1e-9) == 0.05
    assert settling_share(0.0) == 0.0
    assert epoch_time_s(1000, Figure(100, None), 2.0).high is None


@pytest.mark.parametrize(
    ("window_s", "fell_pct"), [(0.5, 3.4), (0.7, 2.4), (1.0, 1.4), (3.4, 1.2), (10.0, 0.7), (30.0, 0.34), (105.0, 0.19)]
)
def test_the_allowance_covers_what_an_h100_lost_by_settling(window_s: float, fell_pct: float) -> None:
    assert fell_pct <= 100 * settling_share(window_s) <= fell_pct + 1.1


def test_an_interval_that_reaches_nothing_has_no_end() -> None:
    assert epoch_time_s(1000, Figure(10, 10)) == Span(100, 50, None)
    assert epoch_time_s(1000, Figure(10, 12)).high is None
    assert epoch_time_s(1000, Figure(10, None)) == Span(100, None, None)


@pytest.mark.parametrize(("tokens", "rate"), [(0, 10.0), (-1, 10.0), (10, 0.0), (10, -1.0), (float("nan"), 1.0)])
def test_no_time_without_tokens_and_a_rate(tokens: float, rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        epoch_time_s(tokens, Figure(rate, 1))
    with pytest.raises(ValueError, match="above 0"):
        epoch_energy_kwh(tokens, rate)


@given(st.integers(1, 10**13), rates)
def test_the_time_lies_in_its_interval(tokens: int, rate: Figure) -> None:
    span = epoch_time_s(tokens, rate)
    assert span.low is not None
    assert span.high is not None
    assert span.low <= span.value <= span.high


@given(st.integers(1, 10**13), rates, st.integers(2, 100))
def test_more_tokens_take_as_many_times_longer(tokens: int, rate: Figure, times: int) -> None:
    assert epoch_time_s(tokens * times, rate).value == pytest.approx(epoch_time_s(tokens, rate).value * times)
    assert epoch_energy_kwh(tokens * times, 9.6) == pytest.approx(epoch_energy_kwh(tokens, 9.6) * times)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("50M", 50_000_000),
        ("5e7", 50_000_000),
        ("5E+7", 50_000_000),
        ("1.2B", 1_200_000_000),
        ("1.1b", 1_100_000_000),
        ("5_000_000", 5_000_000),
        ("5,000,000", 5_000_000),
        ("5,000", 5_000),
        ("1,234.5k", 1_234_500),
        ("~50M tokens", 50_000_000),
        ("≈ 5 B", 5_000_000_000),
        ("5G", 5_000_000_000),
        ("512 tokens", 512),
        ("750k", 750_000),
        (" 2 T ", 2_000_000_000_000),
        (".5M", 500_000),
        ("1.5e3", 1500),
        ("1", 1),
    ],
)
def test_tokens_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0", "above 0"),
        ("0.0M", "above 0"),
        ("-1", "5_000_000"),
        ("many", "50M"),
        ("", "50M"),
        ("nan", "50M"),
        ("inf", "50M"),
        ("5,00", "5,000,000"),
        ("5000,000", "5,000,000"),
        ("5,000_000", "5,000,000"),
        ("0,5", "5,000,000"),
        ("5__0", "50M"),
        ("tokens", "50M"),
        ("~", "50M"),
        ("50Mi", "50M"),
        ("٣", "50M"),
        ("1.5", "fraction"),
        ("1.2345k", "fraction"),
        ("1e-3", "50M"),
        ("1e999", "more tokens than"),
        ("9" * 5000, "more tokens than"),
        ("1e9999999999", "50M"),
    ],
)
def test_what_is_no_number_of_tokens_is_told_how_to_be_one(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_tokens(text)
    assert len(str(refused.value)) < 200


def test_hostile_text_is_not_echoed_raw() -> None:
    with pytest.raises(ValueError, match="no number") as refused:
        parse_tokens("\x1b[31mred")
    assert "\x1b" not in str(refused.value)


@given(st.integers(1, 10**18))
def test_a_whole_number_is_read_as_itself(tokens: int) -> None:
    assert parse_tokens(str(tokens)) == tokens
    assert parse_tokens(f"{tokens:_}") == tokens
    assert parse_tokens(f"{tokens:,}") == tokens


@given(st.integers(1, 10**6), st.sampled_from([("k", 10**3), ("M", 10**6), ("B", 10**9), ("T", 10**12)]))
def test_a_letter_is_its_power_of_ten_exactly(thousandths: int, letter: tuple[str, int]) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{letter[0]}"
    assert parse_tokens(text) == thousandths * letter[1] // 1000


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    try:
        assert parse_tokens(text) > 0
    except ValueError as refused:
        assert str(refused)
