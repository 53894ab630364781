"""A comparison: configurations side by side, each against one GPU and a baseline, with the time and cost of an epoch."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from lorawatch.analysis import cost, epoch, scaling, steptime
from lorawatch.analysis.interval import Figure, ratio
from lorawatch.comparing import work as works
from lorawatch.comparing.answer import sentences
from lorawatch.comparing.configuration import Configuration, Excluded
from lorawatch.comparing.rows import LADDER, Comparison, Epoch, Prices, Row
from lorawatch.errors import UsageError
from lorawatch.text.sanitize import clean


def compare(
    configurations: Sequence[Configuration],
    *,
    baseline: str | None = None,
    tokens: int = 50_000_000,
    prices: Prices | None = None,
    force: bool = False,
    extrapolate: Iterable[int] = (),
    left_out: Container[str] = (),
    excluded: Sequence[Excluded] = (),
    differences: Mapping[str, Mapping[str, str]] | None = None,
    tokens_from: str = "",
) -> Comparison:
    """Put configurations side by side.

    Args:
        baseline: Key or label of the row that others are compared with; default: one GPU of the latest measured one.
        tokens: Tokens of the epoch that the answer is about.
        force: Show configurations of other work too, marked.
        extrapolate: GPU counts that were not measured; their rates are fitted to those that were.
        left_out: Keys of configurations that are not shown; fits and speed-ups still use them.
        differences: Of published rows: configuration's key → printed column → computed value.
        tokens_from: Where `tokens` comes from, for people: a data file and how it was counted.

    Raises:
        UsageError: There is nothing to compare, or no such baseline.
        ValueError: Prices out of range.
    """
    prices = prices or Prices()
    base = choose_baseline(configurations, baseline)
    compared = [(c, tuple(works.differences(c.work, base.work))) for c in configurations]
    shown = [(c, other) for c, other in compared if force or not other]
    other_work = [(c, other) for c, other in compared if other and not force]
    refused: list[str] = []
    same = [c for c, other in shown if not other]
    shown += [(c, ()) for c in _extrapolated(same, sorted(set(extrapolate)), refused)]
    ladder = tuple(sorted({*LADDER, tokens}))
    members = [c for c, _ in shown]
    refused += prices.unused(members)
    unlike = _unlike_settings([c for c in members if c.key not in left_out])
    rows = [
        _row(c, other, members, base, ladder, prices, (differences or {}).get(c.key, {}), unlike) for c, other in shown
    ]
    rows.sort(key=lambda r: (bool(r.other_work), order(r.configuration)))
    comparison = Comparison(
        rows=tuple(r for r in rows if r.configuration.key not in left_out),
        left_out=tuple(r for r in rows if r.configuration.key in left_out),
        baseline=base, work=base.work, tokens=tokens, ladder=ladder, prices=prices, other_work=tuple(other_work),
        excluded=tuple(excluded), refused=tuple(refused), tokens_from=" ".join(clean(tokens_from).split()),
    )  # fmt: skip
    return replace(comparison, answer=tuple(sentences(comparison)))


def find(configurations: Sequence[Configuration], name: str) -> Configuration | None:
    """The configuration of a key, a label (`4 × RTX PRO 4500`, `4xRTX PRO 4500`), or of a SKU with one GPU.

    A label may be followed by where the figures come from, as tables write it: `4 × RTX PRO 4500 (published)`. Of several
    with that label, own runs come first, and the latest of them.
    """
    wanted = _plain(name)
    matches = [c for c in configurations if name == c.key] or [c for c in configurations if wanted in _labels(c)]
    single_gpu = [c for c in configurations if c.count == 1 and c.coupling == "ddp"]
    matches = matches or [c for c in single_gpu if wanted in (_plain(c.sku), _plain(c.short_sku))]
    return min(matches, key=lambda c: (_RANK[c.provenance], -c.created_at_s)) if matches else None


_RANK = {"measured": 0, "simulated": 1, "published": 2, "extrapolated": 3}


def _labels(configuration: Configuration) -> set[str]:
    count, short = configuration.count, configuration.short_sku
    separate = " separate" if configuration.coupling == "separate" else ""
    names = (configuration.label, f"{count}×{configuration.sku}{separate}", f"{short}×{count}{separate}")
    labels = {_plain(name) for name in names}
    origins = {_plain(origin) for origin in (configuration.provenance, configuration.source)}
    return labels | {f"{label}({origin})" for label in labels for origin in origins}


def _plain(text: str) -> str:
    return "".join(text.lower().replace("×", "x").replace("*", "x").removeprefix("nvidia ").split())


def choose_baseline(configurations: Sequence[Configuration], name: str | None = None) -> Configuration:
    """The row of that key or label; by default one GPU of the latest measured configuration.

    Raises:
        UsageError: There is nothing to compare, or no such row.
    """
    if not configurations:
        raise UsageError(
            "there is nothing to compare yet", hint="record a run (lorawatch --record), or import a published table"
        )
    if name is not None:
        chosen = find(configurations, name)
        if chosen is None:
            known = list(dict.fromkeys(c.label for c in configurations))
            more = f" and {len(known) - 20} more" if len(known) > 20 else ""
            raise UsageError(
                f"no configuration {name!r} to compare with", hint=f"there are: {', '.join(known[:20])}{more}"
            )
        return chosen
    own = [c for c in configurations if c.provenance in ("measured", "simulated")]
    latest = max(own or configurations, key=lambda c: c.created_at_s)
    family = [c for c in configurations if c.family == latest.family and c.coupling == "ddp"]
    return min(family or [latest], key=lambda c: c.count)


def order(configuration: Configuration) -> tuple[bool, str, bool, int, bool]:
    """Own runs first, then published ones; a family stands together, its extrapolated rows last."""
    of_published = configuration.family.startswith("published:")
    extrapolated = configuration.provenance == "extrapolated"
    return (of_published, configuration.family, extrapolated, configuration.count, configuration.coupling == "separate")


def _same_family(
    members: Sequence[Configuration], of: Configuration, count: int, coupling: str
) -> Configuration | None:
    return next(
        (
            c for c in members
            if c.family == of.family and c.count == count and c.coupling == coupling and c.provenance != "extrapolated"
        ),
        None,
    )  # fmt: skip


def _row(
    configuration: Configuration, other: tuple[str, ...], members: Sequence[Configuration], base: Configuration,
    ladder: Sequence[int], prices: Prices, differs: Mapping[str, str], unlike: frozenset[str],
) -> Row:  # fmt: skip
    one = _same_family(members, configuration, 1, "ddp")
    speedup = efficiency = coupling = split = karp = None
    if one is not None:
        speedup = scaling.speedup(configuration.tok_s, one.tok_s)
        efficiency = scaling.efficiency_pct(configuration.tok_s, one.tok_s, configuration.count)
        karp = scaling.karp_flatt(speedup.value, configuration.count) if configuration.coupling == "ddp" else None
    separate = _same_family(members, configuration, configuration.count, "separate")
    if (
        separate is not None
        and configuration.coupling == "ddp"
        and configuration.count > 1
        and configuration.provenance != "extrapolated"
    ):
        coupling = scaling.coupling_efficiency_pct(configuration.tok_s, separate.tok_s)
        if one is not None:
            split = scaling.split_loss(configuration.tok_s, separate.tok_s, one.tok_s, configuration.count)
    marks = [
        *configuration.marks,
        *(f"{name} {configuration.settings[name]}" for name in sorted(unlike & configuration.settings.keys())),
    ]
    return Row(
        configuration=configuration,
        per_gpu=Figure(
            configuration.tok_s.value / configuration.count,
            None if configuration.tok_s.ci95 is None else configuration.tok_s.ci95 / configuration.count,
        ),
        speedup=speedup,
        efficiency_pct=efficiency,
        coupling_pct=coupling,
        split=split,
        karp_flatt=karp,
        against=ratio(configuration.tok_s, base.tok_s),
        epochs=tuple(_epoch(configuration, tokens, prices) for tokens in ladder),
        other_work=other,
        differs=dict(differs),
        marks=tuple(marks),
    )


def _epoch(configuration: Configuration, tokens: int, prices: Prices) -> Epoch:
    time = configuration.epoch_time(tokens)
    kwh = epoch.epoch_energy_kwh(tokens, configuration.tok_per_j.value) if configuration.tok_per_j else None
    paid = cost.epoch_cost(time.value, kwh, prices.of(configuration))
    return Epoch(tokens, time, kwh, paid.energy, paid.hardware, paid.total)


def _unlike_settings(members: Sequence[Configuration]) -> frozenset[str]:
    """Settings of which the rows have more than one value."""
    names = {name for c in members for name in c.settings}
    return frozenset(n for n in names if len({c.settings[n] for c in members if n in c.settings}) > 1)


def _extrapolated(members: Sequence[Configuration], counts: Sequence[int], refused: list[str]) -> list[Configuration]:
    """Rows for GPU counts that were not measured, for each family with enough points; `refused` gets the other reasons."""
    if not counts:
        return []
    fitted = []
    families: dict[str, list[Configuration]] = {}
    for member in members:
        if member.coupling == "ddp":
            families.setdefault(member.family, []).append(member)
    for group in families.values():
        like = max(group, key=lambda c: c.count)
        if like.sku == "CPU":
            refused.append(
                "CPU: not extrapolated: ranks on one CPU share its cores, which the step-time model does not cover"
            )
            continue
        points = [steptime.Point(c.count, _step_seconds(c), c.tokens_per_step) for c in group]
        reasons: dict[str, list[str]] = {}
        for count in counts:
            if any(c.count == count for c in group):
                continue
            try:
                rate = steptime.fit(points).tok_s(count)
            except ValueError as why:
                reasons.setdefault(str(why), []).append(str(count))
                continue
            fitted.append(_fitted(like, group, count, rate))
        origin = "" if like.provenance == "measured" else f" ({like.provenance})"
        refused += [f"{', '.join(n)} × {like.short_sku}{origin}: not extrapolated: {why}" for why, n in reasons.items()]
    return fitted


def _fitted(like: Configuration, group: Sequence[Configuration], count: int, rate: Figure) -> Configuration:
    counts = ", ".join(str(c.count) for c in sorted(group, key=lambda c: c.count))
    origin = "" if like.provenance == "measured" else f"{like.provenance} figures of "
    return Configuration(
        key=f"extrapolated:{like.family}:{count}",
        provenance="extrapolated",
        source=f"fitted to {origin}{counts} GPUs",
        name=like.name,
        sku=like.sku,
        count=count,
        coupling="ddp",
        family=like.family,
        work=like.work,
        tok_s=rate,
        model=like.model,
        sequence_length=like.sequence_length,
        tokens_per_step=like.tokens_per_step,
        window_s=like.window_s,
        runs=0,
        created_at_s=like.created_at_s,
        marks=(f"fitted by a step-time model to {origin}{counts} GPUs, not measured",),
    )


def _step_seconds(configuration: Configuration) -> Figure:
    """Seconds of a step: every GPU's tokens ÷ the aggregate rate."""
    return ratio(Figure(configuration.count * configuration.tokens_per_step, 0.0), configuration.tok_s)
