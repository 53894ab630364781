"""How throughput grows with GPUs, and what the loss consists of. Weak scaling: the batch per GPU stays the same."""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.analysis.interval import Figure, quadrature, ratio, scaled


@dataclass(frozen=True, slots=True)
class LossSplit:
    """What DDP on n GPUs loses against n times one GPU alone; each part in percent of n times one alone.

    A part may be a little below 0 because of noise.
    """

    shared_machine: Figure
    """The loss of n separate one-GPU runs at the same time: power, heat, PCIe, host."""
    communication: Figure
    """The further loss by coupling them: the all-reduce, and waiting for the slowest rank."""
    total: Figure


def speedup(rate_n: Figure, rate_1: Figure) -> Figure:
    """tok/s(n) ÷ tok/s(1); exactly 1 for the same object.

    Raises:
        ValueError: The rate of one GPU is 0.
    """
    return ratio(rate_n, rate_1)


def efficiency_pct(rate_n: Figure, rate_1: Figure, n: int) -> Figure:
    """Scaling efficiency tok/s(n) ÷ (n × tok/s(1)), percent; exactly 100 for one GPU's figure over itself.

    Raises:
        ValueError: Fewer than one GPU, or the rate of one GPU is 0.
    """
    _check(n, 1)
    return scaled(ratio(rate_n, rate_1), 100 / n)


def coupling_efficiency_pct(ddp_n: Figure, separate_n: Figure) -> Figure:
    """tok/s of n DDP ranks ÷ summed tok/s of n separate one-GPU runs at the same time, percent.

    Raises:
        ValueError: The separate runs' rate is 0.
    """
    return scaled(ratio(ddp_n, separate_n), 100)


def karp_flatt(speedup_value: float, n: int) -> float | None:
    """The serial fraction that would explain a speed-up, e = (1/S − 1/n)/(1 − 1/n) (Karp and Flatt 1990, CACM 33).

    Constant over n where a fixed part is serial, growing where overhead grows; negative beyond n times.

    Returns:
        0 for a perfect speed-up, 1 for none; None for one GPU, where it is not defined, and for a speed-up of 0.
    """
    if n < 2 or speedup_value <= 0:
        return None
    return (1 / speedup_value - 1 / n) / (1 - 1 / n)


def split_loss(ddp_n: Figure, separate_n: Figure, one: Figure, n: int) -> LossSplit:
    """Split the loss of DDP against n times one GPU alone into the machine's share and communication's.

    shared_machine = 1 − separate/(n·one), communication = (separate − ddp)/(n·one), total = their sum = 1 − ddp/(n·one).

    Args:
        ddp_n: tok/s of n DDP ranks.
        separate_n: Summed tok/s of n separate one-GPU runs at the same time.
        one: tok/s of one GPU while the others idle.
        n: GPUs, at least 2.

    Raises:
        ValueError: Fewer than two GPUs, or the rate of one is 0.
    """
    _check(n, 2)
    separate, ddp = efficiency_pct(separate_n, one, n), efficiency_pct(ddp_n, one, n)
    # both terms share their divisor, so its noise enters only in proportion to their difference
    lost = separate.value - ddp.value
    to_pct = 100 / (n * one.value)
    noise = quadrature(scaled(separate_n, to_pct).ci95, scaled(ddp_n, to_pct).ci95, scaled(one, lost / one.value).ci95)
    return LossSplit(
        Figure(100 - separate.value, separate.ci95),
        Figure(lost, noise),
        Figure(100 - ddp.value, ddp.ci95),
    )


def _check(n: int, least: int) -> None:
    if n < least:
        raise ValueError(f"{n} is not a possible number of GPUs here: at least {least}")
