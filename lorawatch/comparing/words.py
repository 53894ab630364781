"""A comparison's cells as text: the same on the screen, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorawatch.analysis.interval import Figure
from lorawatch.comparing import work as works
from lorawatch.comparing.configuration import epoch_cell
from lorawatch.comparing.rows import Comparison, Epoch, Row
from lorawatch.published.printed import compare_cell
from lorawatch.text.numbers import MISSING, long_duration, number


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Of the CSV and JSON forms, and of the published cell that it recomputes.
        heading: The column's heading.
        text: The cell.
        right: Whether figures are set to the right.
    """

    name: str
    heading: str
    text: Callable[[Row], str]
    right: bool = True


def with_interval(figure: Figure | None, digits: int) -> str:
    """`7,758 ± 813`; without an interval where the noise is not known."""
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
        if tokens >= size * 0.99995:
            return f"{tokens / size:,.0f}{unit}" if tokens >= 1000 * size else f"{tokens / size:.4g}{unit}"
    return f"{tokens:g}"


def money(value: float | None) -> str:
    """`1,234.50`; a small sum keeps two significant digits."""
    return _small(value)


def kilowatt_hours(value: float | None) -> str:
    """`1.45`, `0.0032`, without a unit."""
    return _small(value)


def _small(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:,.2f}" if value >= 0.1 or value <= 0 else f"{value:.2g}"


_OTHER_WORK_SHOWN, _LABELS_SHOWN, _EXCLUDED_SHOWN = 6, 3, 4  # entries in notes; the rest is counted
_SAME_PER_JOULE = 0.005  # share below which the tok/J of all GPUs is the same figure as the used ones'

PRINTED = {
    "tok_s_per_gpu": "tok/s per GPU",
    "scaling": "speed-up",
    "efficiency_pct": "efficiency",
    "tok_per_j": "tok/J",
}
"""Names of the printed cells that can be recomputed."""


def printed_beside(row: Row, column: str, computed: str, unit: str = "") -> str:
    """A cell of a published row: as printed where the computed figure rounds to it, else the computed one beside it."""
    text = row.configuration.printed.get(column)
    if text is None:
        return computed
    if column in row.differs or not _rounds_to(row, column):
        return f"{computed} (printed {text})"
    text = f"{int(text):,}" if text.isascii() and text.isdigit() else text
    return text if text.endswith((unit, "x")) else text + unit


def _rounds_to(row: Row, column: str) -> bool:
    """Whether the table's own figures give a printed cell to its last digit."""
    figures = {
        "tok_s_per_gpu": row.per_gpu,
        "scaling": row.speedup,
        "efficiency_pct": row.efficiency_pct,
        "tok_per_j": row.configuration.tok_per_j,
    }
    figure = figures[column]
    try:
        return figure is None or compare_cell(row.configuration.printed[column], figure.value)
    except ValueError:
        return True


def columns(comparison: Comparison) -> list[Column]:
    """The table's columns: those that have a value in at least one row."""
    own = comparison.ladder.index(comparison.tokens)
    rows = comparison.rows
    every_column = [
        Column("configuration", "configuration", lambda r: r.configuration.label, right=False),
        Column("provenance", "from", _provenance, right=False),
        Column("name", "recipe", _name(rows), right=False),
        Column("tok_s", "tok/s", lambda r: with_interval(r.configuration.tok_s, 0)),
        Column("tok_s_per_gpu", "per GPU", lambda r: printed_beside(r, "tok_s_per_gpu", number(r.per_gpu.value))),
        Column("scaling", "speed-up", lambda r: printed_beside(r, "scaling", _times(r.speedup), "×")),
        Column("efficiency_pct", "efficiency", lambda r: printed_beside(r, "efficiency_pct", _efficiency(r), "%")),
        Column("coupling_efficiency_pct", "coupling", lambda r: interval_pct(r.coupling_pct)),
        Column("shared_machine_pct", "lost: machine", lambda r: interval_pct(r.split.shared_machine if r.split else None)),
        Column("communication_pct", "lost: comm.", lambda r: interval_pct(r.split.communication if r.split else None)),
        Column("against_baseline", "× baseline", lambda r: _times(r.against)),
        Column("avg_power_w", "W", lambda r: number(r.configuration.avg_power_w, 1)),
        Column("tok_per_j", "tok/J", lambda r: printed_beside(r, "tok_per_j", with_interval(r.configuration.tok_per_j, 1))),
        Column("tok_per_j_all", "tok/J all GPUs", lambda r: number(_other_per_joule(r), 1)),
        Column("mfu", "MFU", lambda r: MISSING if r.configuration.mfu is None else f"{100 * r.configuration.mfu:.0f}%"),
        Column("peak_vram_bytes", "VRAM", lambda r: _gib(r.configuration.peak_vram_bytes)),
        Column("epoch_s", f"{tokens_words(comparison.tokens)} tokens", lambda r: long_duration(r.epochs[own].time.value)),
        Column("epoch_kwh", "kWh", lambda r: kilowatt_hours(r.epochs[own].kwh)),
        Column("energy_cost", "energy cost", lambda r: money(r.epochs[own].energy_cost)),
        Column("hardware_cost", "hardware cost", lambda r: money(r.epochs[own].hardware_cost)),
        Column("total_cost", "cost", lambda r: money(r.epochs[own].total_cost)),
    ]  # fmt: skip
    always = ("configuration", "provenance", "tok_s", "epoch_s")
    return [c for c in every_column if c.name in always or any(c.text(r) not in (MISSING, "") for r in rows)]


def heading(comparison: Comparison) -> str:
    """The line above the table: the work of all rows, and the baseline."""
    base = comparison.baseline
    origin = "" if base.provenance == "measured" else f" ({base.provenance})"
    return f"work: {works.words(comparison.work)}; baseline: {base.label}{origin}"


def ladder_title(comparison: Comparison) -> str:
    """The title of the ladder."""
    printed = any(r.configuration.printed.get(epoch_cell(t)) for r in comparison.rows for t in comparison.ladder)
    return "time of one epoch by number of tokens" + ("; in brackets as printed" if printed else "")


def ladder(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The epoch-time ladder: headings, and a row for each configuration, each time beside the printed one."""
    short = [tokens_words(t) for t in comparison.ladder]
    exact = [f"{t:,}" if short.count(s) > 1 else s for s, t in zip(short, comparison.ladder, strict=True)]
    return ["configuration", *exact], [
        [row.configuration.label + after(row), *(_epoch(row, e) for e in row.epochs)]
        for row in comparison.rows
        if row.configuration.coupling == "ddp"
    ]


def _epoch(row: Row, epoch: Epoch) -> str:
    name, time = epoch_cell(epoch.tokens), long_duration(epoch.time.value)
    text = row.configuration.printed.get(name)
    if text is None:
        return time
    return f"{time} (printed {text})" if name in row.differs else f"{time} ({text})"


def notes(comparison: Comparison, *, force: str = "--force") -> list[str]:
    """The notes under the table: marks of rows, what was left out and why.

    Args:
        force: The option or key that shows other work too.
    """
    lines = [f"{tokens_words(comparison.tokens)} tokens: {comparison.tokens_from}"] if comparison.tokens_from else []
    labels_by_mark: dict[str, list[str]] = {}
    for row in comparison.rows:
        label = row.configuration.label + after(row)
        marks = [f"other work: {'; '.join(row.other_work)}"] if row.other_work else []
        marks += row.marks
        marks += differing(row)
        for mark in marks:
            labels = labels_by_mark.setdefault(mark, [])
            if label not in labels:
                labels.append(label)
    lines += [f"{', '.join(labels)}: {mark}" for mark, labels in labels_by_mark.items()]
    lines += _mean_steps(comparison)
    lines += references(comparison)
    lines += list(comparison.refused)
    return [*lines, *_left_out_work(comparison, force), *_excluded(comparison)]


def _mean_steps(comparison: Comparison) -> list[str]:
    """The mean of the steps' rates, as published tables compute it, where such a table is shown."""
    own = [r for r in comparison.rows if r.configuration.mean_step_tok_s is not None]
    if not own or all(r.configuration.provenance != "published" for r in comparison.rows):
        return []
    rates = (f"{number(r.configuration.mean_step_tok_s)} on {r.configuration.label}{after(r)}" for r in own)
    return [f"tok/s as the mean of the steps' own rates, as published tables compute it: {', '.join(rates)}"]


def differing(row: Row) -> list[str]:
    """Each printed cell that the table's own figures do not reproduce to the last digit, with what they give and why."""
    printed = row.configuration.printed
    lines = []
    for name, value in row.differs.items():
        cell = PRINTED.get(name) or f"epoch time of {tokens_words(float(name.rpartition(' ')[2]))} tokens"
        lines.append(f"prints {cell} {printed.get(name, '?')}; its own figures give {value}")
    close = [name for name in PRINTED if name in printed and name not in row.differs and not _rounds_to(row, name)]
    if close:
        cells = " and ".join(f"{PRINTED[name]} {printed[name]}" for name in close)
        lines.append(f"prints {cells}; its own figures, which are rounded too, give a little less or more")
    return lines


def references(comparison: Comparison) -> list[str]:
    """The titles and addresses of the published tables, as far as they are known."""
    published = [r.configuration for r in comparison.rows if r.configuration.provenance == "published"]
    return list(dict.fromkeys(f"published by {c.source}: {c.reference}" for c in published if c.reference))


def _left_out_work(comparison: Comparison, force: str) -> list[str]:
    """Configurations of other work, grouped by table or recipe."""
    groups: dict[tuple[str, str], list[str]] = {}
    for configuration, differs in comparison.other_work:
        groups.setdefault((configuration.name, "; ".join(differs)), []).append(configuration.label)
    lines = []
    for (name, other), labels in list(groups.items())[:_OTHER_WORK_SHOWN]:
        hidden = len(labels) - _LABELS_SHOWN
        shown = ", ".join(labels[:_LABELS_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")
        lines.append(f"left out, other work: {name} ({shown}): {other}")
    rest = sum(len(labels) for labels in list(groups.values())[_OTHER_WORK_SHOWN:])
    if rest:
        lines.append(f"left out, other work: {rest} more; {force} shows them, marked")
    elif groups:
        lines.append(f"{force} shows other work too, marked")
    return lines


def _excluded(comparison: Comparison) -> list[str]:
    """Runs that are not compared, the latest first."""
    latest = comparison.excluded[::-1]
    lines = [f"left out: run {run.run_id} {run.name}: {run.why}" for run in latest[:_EXCLUDED_SHOWN]]
    if len(latest) > _EXCLUDED_SHOWN:
        lines.append(f"left out: {len(latest) - _EXCLUDED_SHOWN} more runs that did not complete or measured nothing")
    return lines


def _provenance(row: Row) -> str:
    configuration = row.configuration
    words: str = configuration.provenance
    if words == "published":
        words += f", {configuration.source}"
    elif words == "extrapolated" and not configuration.family.startswith("measured:"):
        words += f" from {configuration.family.partition(':')[0]}"
    elif configuration.runs > 1:
        words += f", {configuration.runs} runs"
    return f"{words}, OTHER WORK" if row.other_work else words


def _name(rows: Sequence[Row]) -> Callable[[Row], str]:
    """The recipe's name where two rows would look alike without it; with the latest run where the names are alike too."""
    looks = [(r.configuration.label, _provenance(r)) for r in rows]
    names = [(look, r.configuration.name) for look, r in zip(looks, rows, strict=True)]
    alike = {look for look in looks if looks.count(look) > 1}

    def name_of(row: Row) -> str:
        look = (row.configuration.label, _provenance(row))
        if look not in alike:
            return ""
        name = row.configuration.name
        if names.count((look, name)) > 1 and row.configuration.provenance in ("measured", "simulated"):
            return f"{name} ({row.configuration.source.rpartition(' ')[2]})"
        return name

    return name_of


def after(row: Row) -> str:
    """What a label leaves out: ` (published)`, ` (other work)`."""
    kind = row.configuration.provenance
    additions = ([] if kind == "measured" else [kind]) + (["other work"] if row.other_work else [])
    return f" ({', '.join(additions)})" if additions else ""


def _efficiency(row: Row) -> str:
    """Scaling efficiency; not shown for one GPU, which is always at 100%."""
    return interval_pct(row.efficiency_pct if row.configuration.count > 1 else None)


def _times(figure: Figure | None) -> str:
    return MISSING if figure is None else f"{with_interval(figure, 2)}×"


def _other_per_joule(row: Row) -> float | None:
    """Tokens per joule of all the host's GPUs, where it differs from that of the used ones."""
    all_gpus, used = row.configuration.tok_per_j_all, row.configuration.tok_per_j
    if all_gpus is None or used is None or abs(all_gpus - used.value) < _SAME_PER_JOULE * used.value:
        return None
    return all_gpus


def _gib(value: int | None) -> str:
    return MISSING if value is None else f"{value / 2**30:.1f} GiB"
