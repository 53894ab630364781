"""What a sweep says of scaling: against its bounds, rank by rank, and extrapolated against measured. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorawatch.analysis import steptime
from lorawatch.analysis.interval import Figure, pooled, ratio
from lorawatch.comparing.rows import Row

EFFICIENCY_PCT = {2: 99.0, 4: 99.0, 8: 98.0}
"""Weak-scaling efficiency that the fast engine must reach, by GPUs."""
EPOCH_TIME_PCT = 3.0
"""How far an extrapolated epoch time may be from the measured one."""


@dataclass(frozen=True)
class RankFigures:
    """A rank of a configuration, over its repeats; what could not be had is None.

    Attributes:
        p50_s, p95_s: Of its measured steps.
        data_wait: Share of their time.
        capped: Share of its GPU's samples at the power cap.
    """

    ranks: int
    coupling: str
    rank: int
    p50_s: float
    p95_s: float
    data_wait: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
    capped: float | None = None


@dataclass(frozen=True)
class Extrapolated:
    """An epoch's time on so many GPUs by the step-time model, beside the measured one."""

    gpus: int
    fitted_to: tuple[int, ...]
    predicted: Figure
    """tok/s."""
    measured: Figure
    """tok/s."""

    @property
    def epoch_time_off_pct(self) -> float:
        """The extrapolated epoch's time against the measured one's; their tokens are the same."""
        return 100 * (self.measured.value / self.predicted.value - 1)


def turn_by_turn_pct(one: Sequence[float], several: Sequence[float], ranks: int) -> Figure | None:
    """Efficiency of each turn of a sweep, pooled: what burdens a whole turn, such as heat, falls out.

    Args:
        one: tok/s of one GPU alone, in the order of the turns.
        several: tok/s of so many ranks, likewise.
    """
    turns = [Figure(100 * n / (ranks * alone), None) for alone, n in zip(one, several, strict=False)]
    return pooled(turns) if turns else None


def loss_words(row: Row) -> str:
    """Where the rest of n × one alone went."""
    if row.split is None:
        return "no separate runs of as many: what is the machine's and what is communication's is not known"
    parts = (("shared machine", row.split.shared_machine), ("communication", row.split.communication))
    told = " + ".join(f"{name} {_pct(figure)}" for name, figure in parts)
    return f"lost {_pct(row.split.total)} = {told}; coupling efficiency {_pct(row.coupling_pct)}"


def rank_lines(figures: Sequence[RankFigures]) -> list[str]:
    """A line a configuration: its ranks beside one another."""
    groups: dict[tuple[int, str], list[RankFigures]] = {}
    for figure in figures:
        groups.setdefault((figure.ranks, figure.coupling), []).append(figure)
    lines = []
    for (ranks, coupling), group in sorted(groups.items()):
        group.sort(key=lambda f: f.rank)
        fastest, slowest = min(group, key=lambda f: f.p50_s), max(group, key=lambda f: f.p50_s)
        parts = [f"step p50 {_each(1e3 * f.p50_s for f in group)} p95 {_each(1e3 * f.p95_s for f in group)} ms"]
        if ranks > 1:
            parts.append(
                f"rank {slowest.rank} slowest, {100 * (slowest.p50_s / fastest.p50_s - 1):.2f}% behind rank {fastest.rank}"
            )
        waits = [f.data_wait for f in group if f.data_wait is not None]
        if waits:
            parts.append(f"data wait ≤ {100 * max(waits):.2f}%")
        for name, unit, scale in (
            ("clock_mhz", "MHz", 1),
            ("power_w", "W", 1),
            ("capped", "% of samples at the power cap", 100),
        ):
            values = [getattr(f, name) for f in group]
            if None not in values:
                parts.append(f"{_each((scale * v for v in values), 0)} {unit}")
        lines.append(f"{ranks} {coupling if ranks > 1 else '—':<8} " + " | ".join(parts))
    return lines


def pace_words(figures: Sequence[RankFigures], ranks: int) -> str | None:
    """How fast coupled ranks can be at most, by the slowest of as many separate ones; None without those."""
    apart = [f for f in figures if f.ranks == ranks and f.coupling == "separate"]
    alone = [f for f in figures if f.ranks == 1]
    if not apart or not alone:
        return None
    slowest = max(apart, key=lambda f: f.p50_s)
    most = 100 * alone[0].p50_s / slowest.p50_s
    return (
        f"coupled ranks run at the pace of the slowest: rank {slowest.rank} takes {1e3 * slowest.p50_s:.2f} ms a step by "
        f"itself beside the others, one GPU alone {1e3 * alone[0].p50_s:.2f} ms: at most {most:.2f}% without any communication"
    )


def extrapolations(rates: Mapping[int, Figure], tokens_per_gpu: float) -> tuple[list[Extrapolated], list[str]]:
    """Each measured GPU count from the runs at fewer.

    Args:
        rates: tok/s by GPUs.
        tokens_per_gpu: Of a step.

    Returns:
        What could be extrapolated, and in sentences what could not.
    """
    found, refused = [], []
    for gpus in sorted(rates):
        fewer = {n: rates[n] for n in rates if n < gpus}
        if len(fewer) < 2:
            continue
        points = [
            steptime.Point(n, ratio(Figure(n * tokens_per_gpu, 0.0), rate), tokens_per_gpu) for n, rate in fewer.items()
        ]
        try:
            predicted = steptime.fit(points).tok_s(gpus)
        except steptime.CannotExtrapolate as why:
            refused.append(f"{gpus} GPUs from {_counts(fewer)}: {why}")
            continue
        found.append(Extrapolated(gpus, tuple(sorted(fewer)), predicted, rates[gpus]))
    if not found and not refused:
        refused.append(
            f"measured were {_counts(rates)}: the model takes two counts to fit, and a third, larger one to be held against"
        )
    return found, refused


def _counts(rates: Mapping[int, Figure]) -> str:
    return " and ".join(str(n) for n in sorted(rates)) + " GPUs" if rates else "no GPUs"


def _pct(figure: Figure | None) -> str:
    if figure is None:
        return "—"
    return f"{figure.value:.2f}%" if figure.ci95 is None else f"{figure.value:.2f} ± {figure.ci95:.2f}%"


def _each(values: object, places: int = 2) -> str:
    return " ".join(f"{v:,.{places}f}" for v in values)  # type: ignore[attr-defined]
