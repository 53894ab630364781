"""A configuration: one GPU model and count at one piece of work, from runs or from a published table."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from lorawatch.analysis.clocks import NOTABLE_SHARE
from lorawatch.analysis.energy import tok_per_j
from lorawatch.analysis.epoch import Span, epoch_time_s
from lorawatch.analysis.interval import Figure, pooled
from lorawatch.analysis.missing import whole_sum
from lorawatch.comparing.work import Work, assumed, facts, one_line, published_facts, tokens_per_step
from lorawatch.published.rows import PublishedRow
from lorawatch.storage.configurations import RunSummary
from lorawatch.storage.skus import short_name
from lorawatch.text.numbers import number

Provenance = Literal["measured", "published", "simulated", "extrapolated"]
SIMULATED_TAG = "simulated"
"""Runs with this tag are shown as simulated, never as measured."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One line of a comparison: its own figures, before they are compared with others.

    Attributes:
        key: Unique and stable; identifies choices and baselines.
        provenance: Where the figures come from; the four are never shown alike.
        source: The runs' ids, or the published table's name; `reference`: its title and address, as far as they are known.
        sku: As the driver or the table names it; `CPU` for ranks on the CPU.
        count: GPUs, or ranks on the CPU.
        coupling: `ddp`, or `separate`: as many one-GPU runs at the same time.
        family: Scaling is computed within a family: same work, SKU and source.
        work: Facts that must agree.
        model, sequence_length: Used to count a data set's tokens.
        tokens_per_step: Of one GPU, at full length; 1 where it is not known.
        window_s: Seconds of measured steps of a run; None where it is not known, and on the CPU, which has no faster start.
        tok_s: Aggregate, with its 95% interval: Student's t across repeats, batch means within a single run.
        tok_per_j: Of the GPUs used; `tok_per_j_all` of every GPU in the host.
        printed: A published table's cells as printed, by column name; epoch times by `epoch_cell`.
        settings: What may explain a difference without changing the work: torch, driver, power limit.
        marks: Warnings about this line: throttling, a failed run, runs that differ.
    """

    key: str
    provenance: Provenance
    source: str
    name: str
    sku: str
    count: int
    coupling: str
    family: str
    work: Work
    tok_s: Figure
    model: str = ""
    sequence_length: int = 512
    tokens_per_step: float = 1.0
    window_s: float | None = None
    runs: int = 1
    mean_step_tok_s: float | None = None
    tok_per_j: Figure | None = None
    tok_per_j_all: float | None = None
    avg_power_w: float | None = None
    avg_power_all_gpus_w: float | None = None
    peak_vram_bytes: int | None = None
    mfu: float | None = None
    step_s: float | None = None
    final_loss: float | None = None
    created_at_s: float = 0.0
    reference: str = ""
    printed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()

    @property
    def short_sku(self) -> str:
        """The name by which measured and published rows meet: `RTX PRO 4500` of `NVIDIA RTX PRO 4500 Blackwell`."""
        return short_name(self.sku).removeprefix("NVIDIA ")

    @property
    def label(self) -> str:
        """`4 × RTX PRO 4500`, `2 × H100 SXM separate`."""
        return f"{self.count} × {self.short_sku}" + (" separate" if self.coupling == "separate" else "")

    def epoch_time(self, tokens: float) -> Span:
        """Seconds for a data set of `tokens` tokens."""
        return epoch_time_s(tokens, self.tok_s, self.window_s)


@dataclass(frozen=True, slots=True)
class Excluded:
    """A run that is not compared, and why."""

    run_id: str
    name: str
    why: str


def measured(
    runs: Iterable[RunSummary], recipes: Mapping[str, Mapping[str, Any]], *, unfinished: bool = False
) -> tuple[list[Configuration], list[Excluded]]:
    """Runs as configurations; repeats of the same work on the same SKU, count and coupling become one.

    Args:
        recipes: By workload.
        unfinished: Include runs that failed or were stopped, marked.
    """
    groups: dict[tuple[str, str, int, str, bool], list[RunSummary]] = {}
    excluded = []
    for run in runs:
        why = _unusable(run, unfinished)
        if why is not None:
            excluded.append(Excluded(one_line(run.run_id), one_line(run.name), why))
            continue
        sku = one_line(run.sku) if run.sku else "CPU"
        simulated = SIMULATED_TAG in run.tags
        groups.setdefault((run.workload or run.name, sku, run.ranks, run.coupling, simulated), []).append(run)
    configurations = [_of_runs(list(group), key[1], recipes.get(key[0]), key[4]) for key, group in groups.items()]
    return configurations, excluded


class _Shape(TypedDict, total=False):
    model: str
    sequence_length: int
    tokens_per_step: float


def _shape(recipe: Mapping[str, Any] | None) -> _Shape:
    if not recipe:
        return {}
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    return {
        "model": str(model.get("name", "")),
        "sequence_length": int(data.get("sequence_length", 512)),
        "tokens_per_step": tokens_per_step(recipe),
    }


def _unusable(run: RunSummary, unfinished: bool) -> str | None:
    if run.state != "completed" and not unfinished:
        return _ended(run) + (f" after step {run.steps}" if run.steps else "")
    if run.tok_s is None and 0 < (run.reporting_ranks or 0) < run.ranks:
        return f"{run.reporting_ranks} of its {run.ranks} ranks reported steps"
    if run.tok_s is None or not 0 < run.tok_s < math.inf:
        return "it has no measured steps that report their tokens"
    return None


def _ended(run: RunSummary) -> str:
    return one_line(run.state) + (f" ({one_line(run.failure)})" if run.failure else "")


def _of_runs(runs: Sequence[RunSummary], sku: str, recipe: Mapping[str, Any] | None, simulated: bool) -> Configuration:
    last = runs[-1]
    provenance: Provenance = "simulated" if simulated else "measured"
    tok_s = pooled([Figure(r.tok_s, r.tok_s_ci95) for r in runs if r.tok_s is not None])
    power = [r.avg_power_w for r in runs]
    return Configuration(
        key=f"{provenance}:{last.workload or last.name}:{sku}:{last.ranks}:{last.coupling}",
        provenance=provenance,
        source=" ".join(one_line(r.run_id) for r in runs),
        name=one_line(last.name),
        sku=sku,
        count=last.ranks,
        coupling=last.coupling,
        family=f"{provenance}:{last.workload or last.name}:{sku}",
        work=facts(recipe) if recipe is not None else {"command": one_line(last.name)},
        tok_s=tok_s,
        **_shape(recipe),
        window_s=_mean([r.window_s for r in runs]) if last.gpu_count else None,
        runs=len(runs),
        mean_step_tok_s=_mean([r.mean_step_tok_s for r in runs]),
        tok_per_j=_per_joule(runs),
        tok_per_j_all=_mean([r.tok_per_j_all for r in runs]),
        avg_power_w=_mean(power),
        avg_power_all_gpus_w=_mean([r.avg_power_all_gpus_w for r in runs]),
        peak_vram_bytes=max((r.peak_vram_bytes for r in runs if r.peak_vram_bytes is not None), default=None),
        mfu=_mean([r.mfu for r in runs]),
        step_s=_mean([r.step_p50_s for r in runs]),
        final_loss=last.final_loss,
        created_at_s=last.created_at_s,
        settings=_settings(last),
        marks=tuple(_marks(runs)),
        tags=frozenset(t for r in runs for t in r.tags),
    )


def _per_joule(runs: Sequence[RunSummary]) -> Figure | None:
    """Pooled over the runs. A run's energy comes from a counter over the window of its tokens, so its noise is the rate's."""
    figures = [
        Figure(r.tok_per_j, None if r.tok_s_ci95 is None else r.tok_per_j * r.tok_s_ci95 / r.tok_s)
        for r in runs
        if r.tok_per_j and r.tok_s
    ]
    return pooled(figures) if len(figures) == len(runs) else None


def _marks(runs: Sequence[RunSummary]) -> Iterable[str]:
    ended = sorted({_ended(r) for r in runs if r.state != "completed"})
    if ended:
        yield f"with a run that {' or '.join(ended)}: its steps until then"
    if any(r.fell_back for r in runs):
        yield "compiling failed: the reference engine ran instead of the fast one"
    throttled = max((r.throttled_share or 0.0 for r in runs), default=0.0)
    if throttled >= NOTABLE_SHARE:
        yield f"clocks held back by heat or hardware {100 * throttled:.0f}% of the time"
    capped = max((r.power_capped_share or 0.0 for r in runs), default=0.0)
    if capped >= NOTABLE_SHARE:
        yield f"at its power limit {100 * capped:.0f}% of the time"
    if any(r.mfu_plausible is False for r in runs):
        yield "MFU over 75% is implausible: check the FLOP count"
    if any(r.energy_source == "power_integral" for r in runs):
        yield "energy from power readings: the card has no counter"
    for what, values in (
        ("torch", {r.torch_version for r in runs}),
        ("driver", {r.driver_version for r in runs}),
        ("power limit", {_power_limit(*both) for both in {(r.power_limit_w, r.gpu_count) for r in runs}}),
        ("host", {r.host for r in runs}),
    ):
        known = sorted(one_line(v) for v in values if v)
        if len(known) > 1:
            yield f"its runs differ in {what}: {', '.join(known)}"


def _mean(values: Sequence[float | None]) -> float | None:
    total = whole_sum(values)
    return None if total is None else total / len(values)


def published(rows: Sequence[PublishedRow]) -> list[Configuration]:
    """The systems of published tables. Rows that are only epoch estimates contribute their printed times."""
    times: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.dataset_tokens is not None and row.epoch_time is not None:
            times.setdefault(published_key(row), {})[epoch_cell(row.dataset_tokens)] = one_line(row.epoch_time)
    configurations: dict[str, Configuration] = {}
    for row in rows:
        key = published_key(row)
        if row.tok_s is None or not 0 < row.tok_s < math.inf or row.gpu_count < 1 or key in configurations:
            continue
        source = one_line(row.source)
        per_joule = tok_per_j(row.tok_s, row.avg_power_w) or row.tok_per_j
        marks = [one_line(row.note)] if row.note else []
        if assumed(row.work):
            marks.append(
                f"its table does not state {' and '.join(assumed(row.work))}: assumed to be lorawatch's default"
            )
        configurations[key] = Configuration(
            key=key,
            provenance="published",
            source=source,
            name=source,
            sku=one_line(row.sku),
            count=row.gpu_count,
            coupling="ddp",
            family=key.rpartition(":")[0],
            work=published_facts(row.work, row.source),
            tok_s=Figure(row.tok_s, None),
            **_shape(row.work),
            tok_per_j=Figure(per_joule, None) if per_joule else None,
            avg_power_w=row.avg_power_w,
            reference=", ".join(one_line(text) for text in (row.title, row.url) if text),
            printed={k: one_line(v) for k, v in row.printed.items()} | times.get(key, {}),
            marks=tuple(marks),
        )
    return list(configurations.values())


def published_key(row: PublishedRow) -> str:
    """The key of a published row's configuration. Tables of one source may differ in the work of their rows."""
    work = f":{zlib.crc32(repr(row.work).encode()):08x}" if row.work else ""
    return f"published:{one_line(row.source)}{work}:{one_line(row.sku)}:{row.gpu_count}"


def epoch_cell(tokens: int) -> str:
    """The name under which a printed epoch time stands among a configuration's printed cells."""
    return f"epoch_time of {tokens}"


def _settings(run: RunSummary) -> dict[str, str]:
    settings = {
        "torch": run.torch_version,
        "driver": run.driver_version,
        "power limit": _power_limit(run.power_limit_w, run.gpu_count),
    }
    return {name: one_line(value) for name, value in settings.items() if value}


def _power_limit(power_limit_w: float | None, gpu_count: int) -> str | None:
    if not power_limit_w or not gpu_count:
        return None
    return f"{number(power_limit_w / gpu_count)} W a GPU"
