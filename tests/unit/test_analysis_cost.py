"""Cost of an epoch, and when dearer hardware pays."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lorawatch.analysis.cost import Configuration, Prices, break_even_tokens, energy_per_token, epoch_cost

money = st.floats(0, 1e6)
per_token = st.floats(1e-12, 1e-3)
configurations = st.builds(Configuration, st.sampled_from(["a", "b", "c"]), money, per_token)


def test_an_epoch_of_50m_tokens_on_four_cards() -> None:
    cost = epoch_cost(3600 * 1.296, 1.0, Prices(price_per_kwh=0.15, hardware_price=12_000))
    assert cost.energy == pytest.approx(0.15)
    # 12,000 over 4 × 8766 × 0.7 = 24,545 hours is 0.489 an hour
    assert cost.hardware == pytest.approx(0.6336, abs=1e-4)
    assert cost.total == pytest.approx(0.7836, abs=1e-4)


def test_hardware_that_works_its_whole_life_has_cost_its_price() -> None:
    prices = Prices(0.0, hardware_price=9000, life_years=3, utilisation=0.5)
    assert epoch_cost(3 * 8766 * 0.5 * 3600, 1.0, prices).total == pytest.approx(9000)


def test_what_is_not_known_stays_out_of_the_total() -> None:
    unbought = epoch_cost(3600, 2.0, Prices(0.15))
    assert (unbought.energy, unbought.hardware, unbought.total) == (pytest.approx(0.3), None, None)
    unmetered = epoch_cost(3600, None, Prices(0.15, 1000))
    assert unmetered.energy is None
    assert unmetered.total is None
    unpriced = epoch_cost(3600, 2.0, Prices(hardware_price=1000))
    assert unpriced.energy is None
    assert unpriced.hardware is not None
    assert epoch_cost(0, 0, Prices(0.15, 0)).total == 0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"price_per_kwh": -0.1}, "kWh"),
        ({"price_per_kwh": float("nan")}, "kWh"),
        ({"hardware_price": -1.0}, "hardware's price"),
        ({"hardware_price": float("inf")}, "hardware's price"),
        ({"life_years": 0.0}, "life"),
        ({"life_years": -4.0}, "life"),
        ({"life_years": float("nan")}, "life"),
        ({"utilisation": 0.0}, "utilisation"),
        ({"utilisation": 1.1}, "utilisation"),
        ({"utilisation": float("nan")}, "utilisation"),
    ],
)
def test_impossible_prices_are_refused_by_name(wrong: dict[str, float], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Prices(**{"price_per_kwh": 0.15, "hardware_price": 1000.0, **wrong})


@pytest.mark.parametrize(("seconds", "kwh"), [(-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("nan"))])
def test_time_and_energy_are_not_below_nothing(seconds: float, kwh: float) -> None:
    with pytest.raises(ValueError, match="below 0"):
        epoch_cost(seconds, kwh, Prices(0.15))


@given(st.floats(0, 1e8), st.floats(0, 1e5), st.integers(2, 50))
def test_twice_the_epoch_is_twice_the_cost(seconds: float, kwh: float, times: int) -> None:
    prices = Prices(0.15, 12_000)
    once, more = epoch_cost(seconds, kwh, prices), epoch_cost(seconds * times, kwh * times, prices)
    assert once.total is not None
    assert more.total == pytest.approx(once.total * times)


def test_a_tokens_energy() -> None:
    # 10 tok/J: a million tokens take 100 kJ, 1/36 kWh
    assert energy_per_token(10, 0.36) * 1e6 == pytest.approx(0.01)
    with pytest.raises(ValueError, match="tok/J"):
        energy_per_token(0, 0.15)


def test_a_dearer_and_more_frugal_configuration_pays_in_the_end() -> None:
    cheap, dear = Configuration("cheap", 1000, 3e-9), Configuration("dear", 1500, 1e-9)
    result = break_even_tokens(dear, cheap)
    assert result.tokens == pytest.approx(2.5e11)
    assert result.dearer == "dear"
    assert "less energy" in result.why
    assert break_even_tokens(cheap, dear) == result


def test_dearer_to_buy_and_to_run_never_pays() -> None:
    for energy in (3e-9, 4e-9):
        result = break_even_tokens(Configuration("cheap", 1000, 3e-9), Configuration("dear", 1500, energy))
        assert result.tokens is None
        assert result.dearer == "dear"
        assert "no less energy" in result.why


def test_at_the_same_price_the_frugal_one_is_cheaper_at_once() -> None:
    result = break_even_tokens(Configuration("a", 1000, 3e-9), Configuration("b", 1000, 1e-9))
    assert (result.tokens, result.dearer) == (0, None)
    same = break_even_tokens(Configuration("a", 1000, 3e-9), Configuration("b", 1000, 3e-9))
    assert same.tokens is None
    assert "the same" in same.why


def test_a_configuration_has_real_prices() -> None:
    with pytest.raises(ValueError, match="hardware's price"):
        Configuration("a", -1, 1e-9)
    with pytest.raises(ValueError, match="energy"):
        Configuration("a", 1, float("nan"))


@given(configurations, configurations)
def test_break_even_is_where_the_totals_meet(a: Configuration, b: Configuration) -> None:
    tokens = break_even_tokens(a, b).tokens
    assert tokens == break_even_tokens(b, a).tokens
    assume(tokens is not None)
    assert tokens is not None
    assert tokens >= 0
    bought_a, bought_b = (c.hardware_price + tokens * c.energy_per_token for c in (a, b))
    assert bought_a == pytest.approx(bought_b, rel=1e-6, abs=1e-9)
