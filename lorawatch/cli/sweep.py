"""The end of a sweep: its runs beside one another, and what more GPUs brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from lorawatch.analysis.interval import Figure, pooled
from lorawatch.analysis.scaling import LossSplit, coupling_efficiency_pct, efficiency_pct, speedup, split_loss
from lorawatch.cli.summary import run_figures
from lorawatch.errors import UsageError
from lorawatch.recipe.schema import Recipe
from lorawatch.run.directory import Gpu
from lorawatch.text.numbers import MISSING, number
from lorawatch.text.sanitize import json_text

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The completed repeats of one number of ranks, coupled or separate; what could not be had is None.

    Attributes:
        coupling: `ddp` or `separate`; one rank alone counts as `ddp`.
        runs: How many repeats.
        tok_s: All ranks'; Student's t across repeats, or a single run's own interval.
        speedup: Over one rank alone.
        efficiency_pct: Of ranks × one alone.
        coupling_efficiency_pct: Of a coupled one: of as many separate ranks at the same time.
        split: Of a coupled one: where the rest of ranks × one alone went.
    """

    ranks: int
    coupling: str
    runs: int
    tok_s: Figure
    avg_power_w: float | None
    tok_per_j: float | None
    speedup: Figure | None = None
    efficiency_pct: Figure | None = None
    coupling_efficiency_pct: Figure | None = None
    split: LossSplit | None = None


def configurations(rows: Sequence[Row]) -> list[Configuration]:
    """A sweep's completed runs as configurations, in the order in which they first ran."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row["state"] == "completed" and row.get("tok_s"):
            groups.setdefault(_key(row), []).append(row)
    rates = {
        key: pooled([Figure(row["tok_s"], row.get("tok_s_ci95")) for row in group]) for key, group in groups.items()
    }
    one = rates.get((1, "ddp"))
    points = []
    for (ranks, coupling), group in groups.items():
        rate = rates[ranks, coupling]
        separate_rate = rates.get((ranks, "separate")) if coupling == "ddp" and ranks > 1 else None
        points.append(
            Configuration(
                ranks=ranks,
                coupling=coupling,
                runs=len(group),
                tok_s=rate,
                avg_power_w=_mean([row.get("avg_power_w") for row in group]),
                tok_per_j=_mean([row.get("tok_per_j") for row in group]),
                speedup=speedup(rate, one) if one else None,
                efficiency_pct=efficiency_pct(rate, one, ranks) if one else None,
                coupling_efficiency_pct=coupling_efficiency_pct(rate, separate_rate) if separate_rate else None,
                split=split_loss(rate, separate_rate, one, ranks) if separate_rate and one else None,
            )
        )
    return points


def print_sweep(run_ids: Sequence[str], *, as_json: bool = False) -> None:
    """A sweep's runs beside one another, and their configurations compared."""
    rows = [r for r in (run_figures(i) for i in run_ids) if r]
    if not rows:
        return
    points = configurations(rows)
    for line in [_json(rows, points)] if as_json else ["", *_run_lines(rows), "", *_lines(points)]:
        try:
            click.echo(line)
        except OSError:  # a terminal that has gone away must not turn a finished sweep into a failed command
            return


def _key(row: Row) -> tuple[int, str]:
    return row.get("world_size") or 1, row.get("coupling") or "ddp"


def _numbered(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Each run with its number among the repeats of its configuration."""
    seen: dict[tuple[int, str], int] = {}
    numbered = []
    for row in rows:
        seen[_key(row)] = seen.get(_key(row), 0) + 1
        numbered.append((row, seen[_key(row)]))
    return numbered


def _run_lines(rows: Sequence[Row]) -> list[str]:
    lines = [f"{'run':<9} {'ranks':>5} {'coupling':<8} {'repeat':>6} {'state':<10} {'tok/s':>10} {'W':>8} {'tok/J':>7}"]
    for row, repeat in _numbered(rows):
        lines.append(
            f"{row['run_id']:<9} {_key(row)[0]:>5} {_coupled(*_key(row)):<8} {repeat:>6} {row['state']:<10} "
            f"{number(row.get('tok_s')):>10} {number(row.get('avg_power_w'), 1):>8} {number(row.get('tok_per_j'), 2):>7}"
        )
    return lines


def _lines(points: Sequence[Configuration]) -> list[str]:
    lines = [
        f"{'ranks':>5} {'coupling':<8} {'runs':>4} {'tok/s ± 95%':>17} {'W':>8} {'tok/J':>7} {'speed-up':>8} "
        f"{'efficiency':>14}"
    ]
    for c in points:
        faster = f"{c.speedup.value:.2f}×" if c.speedup else MISSING
        lines.append(
            f"{c.ranks:>5} {_coupled(c.ranks, c.coupling):<8} {c.runs:>4} {_with_interval(c.tok_s, 0):>17} "
            f"{number(c.avg_power_w, 1):>8} {number(c.tok_per_j, 2):>7} {faster:>8} "
            f"{_with_interval(c.efficiency_pct, 1, '%'):>14}"
        )
    coupled = [c for c in points if c.coupling_efficiency_pct]
    if coupled:
        lines += ["", f"{'ranks':>5} {'coupling efficiency':>19} {'lost: shared machine':>20} {'communication':>15}"]
        for c in coupled:
            split = c.split
            lines.append(
                f"{c.ranks:>5} {_with_interval(c.coupling_efficiency_pct, 1, '%'):>19} "
                f"{_with_interval(split.shared_machine if split else None, 1, '%'):>20} "
                f"{_with_interval(split.communication if split else None, 1, '%'):>15}"
            )
    return lines


def _json(rows: Sequence[Row], points: Sequence[Configuration]) -> str:
    words = {
        "type": "sweep",
        "sweep_id": rows[0].get("sweep_id"),
        "runs": [
            {"run_id": row["run_id"], "ranks": _key(row)[0], "coupling": _key(row)[1], "repeat": repeat,
             "state": row["state"], "tok_s": row.get("tok_s"), "tok_s_ci95": row.get("tok_s_ci95")}
            for row, repeat in _numbered(rows)
        ],
        "configurations": points,
    }  # fmt: skip
    return json_text(words)


def _coupled(ranks: int, coupling: str) -> str:
    return coupling if ranks > 1 else MISSING  # one rank exchanges nothing


def _with_interval(figure: Figure | None, places: int, unit: str = "") -> str:
    if figure is None:
        return MISSING
    if not figure.ci95:  # not known, or a figure over itself
        return f"{number(figure.value, places)}{unit}"
    return f"{number(figure.value, places)} ± {number(figure.ci95, places)}{unit}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def sweep_counts(sweep: str | None) -> list[int | None]:
    if sweep is None:
        return [None]
    try:
        counts = [int(w) for w in sweep.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--sweep {sweep!r} is not a list of GPU counts", hint="for example --sweep 1,2,4")
    return list(counts)


def places_of(recipe: Recipe, gpus: Sequence[Gpu], counts: Sequence[int | None]) -> list[tuple[int | None, int]]:
    """Each count with the number of ranks that it comes to; refuses an impossible sweep before its first run."""
    from lorawatch.launch.placement import place
    from lorawatch.recipe.devices import parse_gpus

    request = parse_gpus(recipe.launch.gpus)
    return [(count, place(request, gpus, count=count).world_size) for count in counts]


def plan_sweep(
    places: Sequence[tuple[int | None, int]], *, separate: bool, repeat: int
) -> list[tuple[int | None, bool]]:
    """The runs of a sweep in their order.

    In turns, the whole ladder before its next repeat, and separate beside coupled: a machine that warms up or is used by
    others meanwhile then burdens all configurations alike, where repeats in a row would make it a difference between
    them.

    Args:
        places: Each count with its number of ranks.
        separate: A separate run beside each run of several ranks.
        repeat: How often each.

    Returns:
        For each run: the count, and whether its ranks train separately.

    Raises:
        UsageError: No repeat, or nothing to separate.
    """
    if repeat < 1:
        raise UsageError(
            f"--repeat {repeat} is no number of runs", hint="at least 1; 3 give an interval across repeats"
        )
    if separate and all(ranks == 1 for _, ranks in places):
        raise UsageError(
            "--separate compares several GPUs coupled with as many separate ones, but the run has a single one",
            hint="for example --sweep 1,2 --separate, or --gpus cpu:2 --separate",
        )
    once: list[tuple[int | None, bool]] = []
    for count, ranks in places:
        once.append((count, False))
        if separate and ranks > 1:
            once.append((count, True))
    return once * repeat
