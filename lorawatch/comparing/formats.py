"""A comparison as text: a table for a terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import msgspec

from lorawatch.analysis.interval import Figure
from lorawatch.comparing import sheets, words
from lorawatch.comparing.configuration import epoch_cell
from lorawatch.comparing.rows import LADDER, Comparison, Row
from lorawatch.text.sanitize import json_text

FORMATS = ("table", "markdown", "csv", "json", "html")


def write(comparison: Comparison, form: str, *, width: int | None = None) -> str:
    """The comparison in one of `FORMATS`.

    Args:
        width: Of the terminal, for a table; None for as wide as the table is.
    """
    if form == "html":
        from lorawatch.comparing.html import page

        return page(comparison)
    forms: dict[str, Callable[[Comparison], str]] = {"markdown": markdown, "csv": as_csv, "json": as_json}
    return forms[form](comparison) if form in forms else table(comparison, width)


def table(comparison: Comparison, width: int | None = None) -> str:
    """For a terminal; columns that do not fit go into a second table below the first."""
    columns = words.columns(comparison)
    cells = [[c.text(row) for c in columns] for row in comparison.rows]
    headings = [c.heading for c in columns]
    parts = sheets.split(headings, cells, width)
    if len(parts) > 1:  # the tables further down lack the column with the figures' origin
        for line, row in zip(cells, comparison.rows, strict=True):
            line[0] += words.after(row)
        parts = sheets.split(headings, cells, width)
    right = [c.right for c in columns]
    lines = [*comparison.answer, ""] if comparison.answer else []
    lines += [words.heading(comparison), ""]
    for part in parts:
        lines += [
            *sheets.ruled([headings[i] for i in part], [[r[i] for i in part] for r in cells], [right[i] for i in part]),
            "",
        ]
    ladder_headings, ladder = words.ladder(comparison)
    lines += [
        words.ladder_title(comparison),
        *sheets.ruled(ladder_headings, ladder, [False] + [True] * len(comparison.ladder)),
    ]
    notes = words.notes(comparison)
    if notes:
        lines += ["", *(f"· {note}" for note in notes)]
    return "\n".join(lines)


def markdown(comparison: Comparison) -> str:
    """Two pipe tables, the answer above, the notes below."""
    columns = words.columns(comparison)
    lines = ["  \n".join(sheets.escaped(s) for s in comparison.answer), ""] if comparison.answer else []
    lines += [sheets.escaped(words.heading(comparison)), ""]
    lines += sheets.piped(
        [c.heading for c in columns],
        [[c.text(r) for c in columns] for r in comparison.rows],
        [c.right for c in columns],
    )
    headings, ladder = words.ladder(comparison)
    lines += [
        "",
        words.ladder_title(comparison),
        "",
        *sheets.piped(headings, ladder, [False] + [True] * len(comparison.ladder)),
    ]
    notes = words.notes(comparison)
    if notes:
        lines += ["", *(f"- {sheets.escaped(note)}" for note in notes)]
    return "\n".join(lines)


def as_csv(comparison: Comparison) -> str:
    """A line a configuration, unrounded; a missing figure is an empty cell."""
    rows = [record(comparison, row) for row in comparison.rows]
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: sheets.csv_cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue().rstrip("\n")


def as_json(comparison: Comparison) -> str:
    """One object: `answer`, `work`, `rows` as in the CSV, and what was left out with its reason."""
    document = {
        "answer": list(comparison.answer),
        "work": dict(comparison.work),
        "baseline": comparison.baseline.label,
        "tokens": comparison.tokens,
        "tokens_from": comparison.tokens_from or None,
        "rows": [record(comparison, row) for row in comparison.rows],
        "notes": words.notes(comparison),
        "other_work": [
            {"name": c.name, "configuration": c.label, "provenance": c.provenance, "differs": list(other)}
            for c, other in comparison.other_work
        ],
        "excluded": [{"run_id": e.run_id, "name": e.name, "why": e.why} for e in comparison.excluded],
        "not_extrapolated": list(comparison.refused),
    }
    return msgspec.json.format(json_text(document), indent=1)


def record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """A row as plain figures, for programs; units are in the names."""
    own = row.configuration
    at = comparison.ladder.index(comparison.tokens)
    fields: dict[str, Any] = {
        "provenance": own.provenance, "name": own.name, "sku": own.sku, "count": own.count, "coupling": own.coupling,
        "runs": own.runs, "source": own.source, "reference": own.reference or None,
        "is_baseline": own is comparison.baseline,
    }  # fmt: skip
    for name, figure in (
        ("tok_s", own.tok_s),
        ("tok_s_per_gpu", row.per_gpu),
        ("scaling", row.speedup),
        ("efficiency_pct", row.efficiency_pct),
        ("coupling_efficiency_pct", row.coupling_pct),
        ("shared_machine_pct", row.split.shared_machine if row.split else None),
        ("communication_pct", row.split.communication if row.split else None),
        ("tok_per_j", own.tok_per_j),
        ("against_baseline", row.against),
    ):
        fields |= _both(name, figure)
    fields |= {
        "mean_step_tok_s": own.mean_step_tok_s,
        "karp_flatt": row.karp_flatt,
        "avg_power_w": own.avg_power_w,
        "avg_power_all_gpus_w": own.avg_power_all_gpus_w,
        "tok_per_j_all_gpus": own.tok_per_j_all,
        "mfu": own.mfu,
        "peak_vram_bytes": own.peak_vram_bytes,
        "final_loss": own.final_loss,
        "dataset_tokens": comparison.tokens,
        "epoch_s": row.epochs[at].time.value,
        "epoch_low_s": row.epochs[at].time.low,
        "epoch_high_s": row.epochs[at].time.high,
        "epoch_kwh": row.epochs[at].kwh,
        "epoch_energy_cost": row.epochs[at].energy_cost,
        "epoch_hardware_cost": row.epochs[at].hardware_cost,
        "epoch_total_cost": row.epochs[at].total_cost,
    }
    rungs = {e.tokens: e for e in row.epochs}
    fields |= {f"epoch_{words.tokens_words(t)}_s": rungs[t].time.value for t in LADDER}
    fields |= {f"setting_{n.replace(' ', '_')}": own.settings.get(n) for n in ("torch", "driver", "power limit")}
    fields |= {f"printed_{name}": own.printed.get(name) for name in words.PRINTED}
    fields |= {f"printed_epoch_{words.tokens_words(t)}": own.printed.get(epoch_cell(t)) for t in LADDER}
    other = [f"other work: {', '.join(row.other_work)}"] if row.other_work else []
    fields["notes"] = "; ".join([*other, *row.marks, *words.differing(row)])
    return fields


def _both(name: str, figure: Figure | None) -> dict[str, float | None]:
    return {name: None if figure is None else figure.value, f"{name}_ci95": None if figure is None else figure.ci95}
