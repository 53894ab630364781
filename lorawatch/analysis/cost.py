"""The cost of an epoch, and when dearer hardware pays. All prices are in one currency, whichever it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

_HOURS_A_YEAR = 8766.0


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices, and how long the hardware is used; None for a price that is not known.

    Raises:
        ValueError: A price below 0, a life or utilisation not above 0, a utilisation over 1, or not a number.
    """

    price_per_kwh: float | None = None
    hardware_price: float | None = None
    """Of the whole configuration."""
    life_years: float = 4.0
    utilisation: float = 0.7
    """Share of its life in which the hardware is busy, above 0 to 1."""

    def __post_init__(self) -> None:
        if self.price_per_kwh is not None:
            _price("the price of a kWh", self.price_per_kwh)
        if self.hardware_price is not None:
            _price("the hardware's price", self.hardware_price)
        if not (0 < self.life_years < math.inf):
            raise ValueError(f"the hardware's life must be above 0 years, not {self.life_years:g}")
        if not (0 < self.utilisation <= 1):
            raise ValueError(f"utilisation must be above 0 and at most 1, not {self.utilisation:g}")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of an epoch; None for a part that is not known."""

    energy: float | None
    hardware: float | None

    @property
    def total(self) -> float | None:
        """Energy and hardware; None where one is not known, since half a cost would look cheap."""
        return None if self.energy is None or self.hardware is None else self.energy + self.hardware


def epoch_cost(seconds: float, kwh: float | None, prices: Prices) -> Cost:
    """Cost of an epoch: its energy, and its share of the hardware's price.

    The price is spread evenly over the hours in which the hardware is busy: life × 8766 h × utilisation.

    Args:
        seconds: Time of the epoch.
        kwh: Its energy, None where it was not measured.
        prices: As `Prices` says.

    Raises:
        ValueError: Time or energy below 0.
    """
    if not seconds >= 0 or (kwh is not None and not kwh >= 0):
        raise ValueError("an epoch's cost needs a time and an energy that are not below 0")
    hours = prices.life_years * _HOURS_A_YEAR * prices.utilisation
    return Cost(
        None if kwh is None or prices.price_per_kwh is None else kwh * prices.price_per_kwh,
        None if prices.hardware_price is None else prices.hardware_price * seconds / 3600 / hours,
    )


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration to compare: its price, and the price of running it.

    Raises:
        ValueError: A price below 0, or not a number.
    """

    name: str
    hardware_price: float
    energy_per_token: float
    """Price of the energy of one token; see `energy_per_token`."""

    def __post_init__(self) -> None:
        _price("the hardware's price", self.hardware_price)
        _price("the price of a token's energy", self.energy_per_token)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """After how many tokens the configuration that is dearer to buy is the cheaper one in all; None for never."""

    tokens: float | None
    why: str
    """The reason in a sentence; "it" is the configuration named in `dearer`."""
    dearer: str | None
    """Name of the configuration that is dearer to buy; None where both cost the same."""


def energy_per_token(tok_per_j: float, price_per_kwh: float) -> float:
    """Price of one token's energy: price per kWh ÷ 3.6e6 joules ÷ tok/J.

    Raises:
        ValueError: tok/J is not above 0.
    """
    if not tok_per_j > 0:
        raise ValueError("the price of a token's energy needs tok/J above 0")
    return price_per_kwh / 3.6e6 / tok_per_j


def break_even_tokens(a: Configuration, b: Configuration) -> BreakEven:
    """Tokens after which purchase and energy of the configuration that is dearer to buy are less than the other's.

    Purchase is paid at once and in full; time has no cost here, so that a slow configuration with less energy wins in the end.
    """
    dear, cheap = (a, b) if a.hardware_price >= b.hardware_price else (b, a)
    more = dear.hardware_price - cheap.hardware_price
    saved = cheap.energy_per_token - dear.energy_per_token
    if more == 0:
        if saved == 0:
            return BreakEven(None, "both cost the same to buy and to run", None)
        return BreakEven(0.0, "both cost the same to buy: the one that takes less energy is cheaper at once", None)
    if saved <= 0:
        return BreakEven(None, "it is dearer to buy and its tokens take no less energy", dear.name)
    return BreakEven(more / saved, "it is dearer to buy and its tokens take less energy", dear.name)


def _price(what: str, value: float) -> None:
    if not (0 <= value < math.inf):
        raise ValueError(f"{what} must be a number not below 0, not {value:g}")
