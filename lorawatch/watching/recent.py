"""The figures of a run as it goes: rates of its recent steps, power of the moment, energy since recording began."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from lorawatch.analysis.energy import tok_per_j
from lorawatch.analysis.mfu import run_mfu
from lorawatch.analysis.missing import whole_sum
from lorawatch.run.directory import RunInfo
from lorawatch.run.live import GpuView, LiveView
from lorawatch.watching.final import RunFigures

_READ_WITHIN_S = 0.25
"""A power reading this close to a step is of that step."""
Readings = Mapping[str, Iterable[tuple[float, float]]]
"""Recent power readings by GPU: (unix seconds, watts)."""


def recent_figures(info: RunInfo, view: LiveView, power: Readings, *, ended: bool) -> RunFigures:
    """What a run reaches now.

    Args:
        power: Of each GPU, of at least as long as `view.recent_spans`.
        ended: Whether the run has ended: no power is of this moment then.
    """
    used, everywhere = {g.gpu_uuid for g in info.used_gpus}, {g.gpu_uuid for g in info.gpus}
    first = min((r.started for r in view.ranks.values() if r.started), key=lambda s: s.rank, default=None)
    utilisation = None
    if first is not None and first.gpu_name:
        count = len(used) or max(view.world_size, 1)
        utilisation = run_mfu(first.flops_per_token, view.tok_s, count, first.dtype, _peak(first.gpu_name))
    return RunFigures(
        figures_of="recent",
        tok_s=view.tok_s,
        tok_per_j=None if ended else _tok_per_j(view, power, used),
        power_w=None if ended or not used else view.power_w(used),
        power_all_w=None if ended or not everywhere else view.power_w(everywhere),
        energy_j=_energy(view, used),
        energy_all_j=_energy(view, everywhere),
        mfu=utilisation,
        loss=view.loss,
    )


def _tok_per_j(view: LiveView, power: Readings, uuids: set[str]) -> float | None:
    """tok/s over the mean power of the same recent steps; None where a GPU has no reading among them."""
    spans = [(begin - _READ_WITHIN_S, end + _READ_WITHIN_S) for begin, end in view.recent_spans]
    means = []
    for uuid in uuids:
        readings = [watts for at, watts in power.get(uuid, ()) if any(begin <= at <= end for begin, end in spans)]
        means.append(sum(readings) / len(readings) if readings else None)
    return tok_per_j(view.tok_s, whole_sum(means))


def _energy(view: LiveView, uuids: set[str]) -> float | None:
    """Joules by the counters since recording began; None where a GPU has none."""
    gpus = [view.gpus.get(u) or GpuView(sampled_at=0.0, gpu_uuid=u) for u in uuids]
    return whole_sum(
        None if g.energy_j is None or g.first_energy_j is None else g.energy_j - g.first_energy_j for g in gpus
    )


@functools.cache
def _peak(sku: str) -> float | None:
    from lorawatch.storage.skus import bf16_dense_peak

    return bf16_dense_peak(sku)
