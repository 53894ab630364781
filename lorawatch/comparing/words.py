"""A comparison's cells as people read them: the same words on the screen, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorawatch.analysis.interval import Figure
from lorawatch.comparing.comparison import Comparison, Row
from lorawatch.text import MISSING, long_duration, number


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Of the CSV and JSON forms, and of the published cell that it recomputes.
        heading: For people.
        text: The cell.
        right: Whether figures are set to the right.
    """

    name: str
    heading: str
    text: Callable[[Row], str]
    right: bool = True


def with_interval(figure: Figure | None, digits: int) -> str:
    """`7,758 ± 813`; a figure whose noise is not known stands alone."""
    if figure is None:
        return MISSING
    spread = f" ± {figure.ci95:,.{digits}f}" if figure.ci95 is not None and figure.ci95 > 0 else ""
    return f"{figure.value:,.{digits}f}{spread}"


def interval_pct(figure: Figure | None) -> str:
    """`96.5 ± 0.4%`."""
    return MISSING if figure is None else f"{with_interval(figure, 1)}%"


def tokens_words(tokens: float) -> str:
    """`50M`, `1.25B`, `750k`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:g}"


def money(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f}"


def printed_beside(row: Row, column: str, computed: str, unit: str = "") -> str:
    """A cell of a published row as printed; what its table's own figures give comes first where that differs.

    A printed cell was rounded from figures that are not: where it can follow from the table's own, it is the better one.
    """
    text = row.configuration.printed.get(column)
    if text is None:
        return computed
    if column in row.differs:
        return f"{computed} (printed {text})"
    return (f"{int(text):,}" if text.isdigit() else text) + unit


def columns(comparison: Comparison) -> list[Column]:
    """The table's columns: those that have something to say about at least one row."""
    own = comparison.ladder.index(comparison.tokens)
    rows = comparison.rows
    found = [
        Column("configuration", "configuration", lambda r: r.configuration.label, right=False),
        Column("provenance", "from", _provenance, right=False),
        Column("tok_s", "tok/s", lambda r: with_interval(r.configuration.tok_s, 0)),
        Column("tok_s_per_gpu", "per GPU", lambda r: printed_beside(r, "tok_s_per_gpu", number(r.per_gpu.value))),
        Column("scaling", "speed-up", lambda r: printed_beside(r, "scaling", _times(r.speedup), "×")),
        Column("efficiency_pct", "efficiency", lambda r: printed_beside(r, "efficiency_pct", _efficiency(r), "%")),
        Column("coupling_efficiency_pct", "coupling", lambda r: interval_pct(r.coupling_pct)),
        Column("shared_machine_pct", "lost: machine", lambda r: interval_pct(r.split.shared_machine if r.split else None)),
        Column("communication_pct", "lost: comm.", lambda r: interval_pct(r.split.communication if r.split else None)),
        Column("avg_power_w", "W", lambda r: number(r.configuration.avg_power_w, 1)),
        Column("tok_per_j", "tok/J", lambda r: printed_beside(r, "tok_per_j", with_interval(r.configuration.tok_per_j, 1))),
        Column("tok_per_j_all", "tok/J all GPUs", lambda r: number(_other_per_joule(r), 1)),
        Column("mfu", "MFU", lambda r: MISSING if r.configuration.mfu is None else f"{100 * r.configuration.mfu:.0f}%"),
        Column("peak_vram_bytes", "VRAM", lambda r: _gib(r.configuration.peak_vram_bytes)),
        Column("against_baseline", "× baseline", lambda r: _times(r.against)),
        Column("epoch_s", f"{tokens_words(comparison.tokens)} tokens", lambda r: long_duration(r.epochs[own].time.value)),
        Column("epoch_kwh", "kWh", lambda r: number(r.epochs[own].kwh, 2)),
        Column("energy_cost", "energy", lambda r: money(r.epochs[own].energy_cost)),
        Column("hardware_cost", "hardware", lambda r: money(r.epochs[own].hardware_cost)),
    ]  # fmt: skip
    always = ("configuration", "provenance", "tok_s", "epoch_s")
    return [c for c in found if c.name in always or any(c.text(r) not in (MISSING, "") for r in rows)]


def ladder(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The epoch-time ladder: headings, and a row of words a configuration."""
    headings = ["configuration", *(tokens_words(t) for t in comparison.ladder)]
    return headings, [
        [r.configuration.label + _after(r), *(long_duration(e.time.value) for e in r.epochs)]
        for r in comparison.rows
        if r.configuration.coupling == "ddp"
    ]


def notes(comparison: Comparison, *, force: str = "--force") -> list[str]:
    """What stands under the table: what rows are marked with, what was left out and why.

    Args:
        force: What shows other work, too.
    """
    said: dict[str, list[str]] = {}
    for row in comparison.rows:
        label = row.configuration.label + _after(row)
        marks = [f"other work: {'; '.join(row.other_work)}"] if row.other_work else []
        marks += row.marks
        marks += [
            f"prints {row.configuration.printed.get(name, '?')} for {name}, its own figures give {value}"
            for name, value in row.differs.items()
        ]
        for mark in marks:
            said.setdefault(mark, []).append(label)
    found = [f"{', '.join(labels)}: {mark}" for mark, labels in said.items()]
    if any(r.configuration.provenance == "published" for r in comparison.rows):
        found += [
            f"{r.configuration.label}: {number(r.configuration.mean_step_tok_s)} tok/s as the mean of the steps' own rates, "
            "as published tables reckon it"
            for r in comparison.rows
            if r.configuration.mean_step_tok_s is not None
        ]
    found += list(comparison.refused)
    for configuration, other in comparison.apart[:6]:
        found.append(f"left out, other work: {configuration.name} on {configuration.label}: {'; '.join(other)}")
    if len(comparison.apart) > 6:
        found.append(f"left out, other work: {len(comparison.apart) - 6} more; {force} shows them, marked")
    elif comparison.apart:
        found.append(f"{force} shows other work too, marked")
    for run in comparison.excluded[:4]:
        found.append(f"left out: run {run.run_id} {run.name}: {run.why}")
    if len(comparison.excluded) > 4:
        found.append(f"left out: {len(comparison.excluded) - 4} more runs that did not complete or measured nothing")
    return found


def _provenance(row: Row) -> str:
    configuration = row.configuration
    if configuration.provenance == "measured":
        said = "measured" + (f", {configuration.runs} runs" if configuration.runs > 1 else "")
    else:
        said = configuration.provenance
    return f"{said}, OTHER WORK" if row.other_work else said


def _after(row: Row) -> str:
    return "" if row.configuration.provenance == "measured" else f" ({row.configuration.provenance})"


def _efficiency(row: Row) -> str:
    """One GPU is 100% of itself, which nobody needs to read."""
    return interval_pct(row.efficiency_pct if row.configuration.count > 1 else None)


def _times(figure: Figure | None) -> str:
    return MISSING if figure is None else f"{with_interval(figure, 2)}×"


def _other_per_joule(row: Row) -> float | None:
    """Tokens a joule of all the host's GPUs, where that is another figure than that of the used ones."""
    all_gpus, used = row.configuration.tok_per_j_all, row.configuration.tok_per_j
    if all_gpus is None or used is None or abs(all_gpus - used.value) < 0.005 * used.value:
        return None
    return all_gpus


def _gib(value: int | None) -> str:
    return MISSING if value is None else f"{value / 2**30:.1f} GiB"
