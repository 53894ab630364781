"""The parts of a comparison: rows, prices, the work and the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lorawatch.analysis import cost, epoch, scaling
from lorawatch.analysis.interval import Figure
from lorawatch.comparing.configuration import Configuration, Excluded
from lorawatch.comparing.work import Work, one_line
from lorawatch.storage.skus import short_name, spelling

LADDER = (5_000_000, 50_000_000, 500_000_000, 5_000_000_000)
"""Tokens of the published benchmark's epoch estimates."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in one currency, whichever it is.

    Attributes:
        price_per_kwh: None leaves costs out.
        gpu_prices: Price of one GPU by SKU, by any name that the GPU goes by.
        host_price: Of the machine around the GPUs.
    """

    price_per_kwh: float | None = None
    gpu_prices: Mapping[str, float] = field(default_factory=dict)
    host_price: float = 0.0
    life_years: float = 4.0
    utilisation: float = 0.7

    def hardware(self, configuration: Configuration) -> float | None:
        """Price of the configuration's GPUs and their host; None where its SKU has no price."""
        for sku, price in self.gpu_prices.items():
            if priced_sku(sku) in (priced_sku(configuration.short_sku), priced_sku(configuration.sku)):
                return configuration.count * price + self.host_price
        return None

    def unused(self, configurations: Iterable[Configuration]) -> Iterable[str]:
        """Prices that no configuration uses, in sentences: without them a missing cost would read as a cost of 0."""
        names = list(dict.fromkeys(c.short_sku for c in configurations))
        known = {priced_sku(name) for name in names} | {priced_sku(c.sku) for c in configurations}
        for sku, price in self.gpu_prices.items():
            if priced_sku(sku) not in known:
                yield f"the price {price:g} of a {one_line(sku)!r} is not used: the GPUs here are {', '.join(names)}"
        if self.host_price and not self.gpu_prices:
            yield f"the host's price {self.host_price:g} is not used: it is added to a price of the GPUs"

    def check(self) -> None:
        """Check that costs can be computed with these prices.

        Raises:
            ValueError: As `of`.
        """
        for price in (*self.gpu_prices.values(), self.host_price):
            cost.Prices(self.price_per_kwh, price, self.life_years, self.utilisation)

    def of(self, configuration: Configuration) -> cost.Prices:
        """The prices of one configuration, as `analysis.cost` takes them.

        Raises:
            ValueError: A price below 0, a life or utilisation out of range.
        """
        return cost.Prices(self.price_per_kwh, self.hardware(configuration), self.life_years, self.utilisation)


def priced_sku(name: str) -> str:
    """A SKU's name in the spelling by which prices are looked up."""
    return spelling(short_name(name))


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over `tokens` tokens."""

    tokens: int
    time: epoch.Span
    kwh: float | None
    energy_cost: float | None
    hardware_cost: float | None
    total_cost: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration with its compared figures; a figure that is not known is None.

    Attributes:
        per_gpu: tok/s a GPU (or rank).
        speedup: Against one GPU of the same family.
        efficiency_pct: Weak-scaling efficiency.
        coupling_pct: Coupling efficiency, where there are separate runs of the same count.
        split: What is lost to the shared machine and to communication.
        against: tok/s ÷ the baseline's.
        epochs: In the order of the comparison's ladder.
        other_work: What differs from the baseline's work; shown only when forced.
        differs: Printed cells that the table's own figures do not give: column → the computed value.
        marks: The configuration's, and the settings that differ among the rows.
    """

    configuration: Configuration
    per_gpu: Figure
    speedup: Figure | None
    efficiency_pct: Figure | None
    coupling_pct: Figure | None
    split: scaling.LossSplit | None
    karp_flatt: float | None
    against: Figure
    epochs: tuple[Epoch, ...]
    other_work: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A whole table.

    Attributes:
        work: What all rows compute, unless forced.
        tokens: Tokens of the epoch that the answer is about; one of the ladder's rungs.
        left_out: Rows that were not chosen; the others' speed-up may still use them.
        other_work: Configurations of other work, each with what differs.
        refused: Why a row that was asked for is not extrapolated, or a price is not used.
        tokens_from: Where the tokens come from, where they were counted in a data set.
        answer: Sentences that answer "which GPUs, how many, how long".
    """

    rows: tuple[Row, ...]
    baseline: Configuration
    work: Work
    tokens: int
    ladder: tuple[int, ...]
    prices: Prices
    left_out: tuple[Row, ...] = ()
    other_work: tuple[tuple[Configuration, tuple[str, ...]], ...] = ()
    excluded: tuple[Excluded, ...] = ()
    refused: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    tokens_from: str = ""
