"""Estimates before a run starts: memory on every known GPU model, and the time of an epoch from the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.analysis.epoch import Span
from lorawatch.analysis.memory import Fit, MemoryEstimate, Workload, estimate, verdict, what_would_fit
from lorawatch.comparing import work as works
from lorawatch.comparing.comparison import compare
from lorawatch.comparing.configuration import Configuration
from lorawatch.comparing.gather import Gathered
from lorawatch.errors import LorawatchError
from lorawatch.models import memory as fit
from lorawatch.recipe.schema import Recipe
from lorawatch.run.directory import Gpu
from lorawatch.storage.skus import all_skus, find_sku
from lorawatch.text.sanitize import clean


@dataclass(frozen=True, slots=True)
class GpuFit:
    """A GPU model and whether the recipe fits on it.

    Attributes:
        here: Indices of this machine's GPUs of that model; empty for a model that is not in this machine.
        advice: What would make it fit, where it does not.
        remark: Another reason against it, such as a missing number format.
    """

    sku: str
    memory_total_bytes: int
    fit: Fit
    here: tuple[int, ...] = ()
    advice: tuple[str, ...] = ()
    remark: str = ""

    @property
    def words(self) -> str:
        """`fits, 9.9 GiB to spare`, with the remark."""
        return fit_words(self.fit) + (f"; {self.remark}" if self.remark else "")


@dataclass(frozen=True, slots=True)
class EpochTime:
    """The time of an epoch on a measured, published or extrapolated configuration of the same work."""

    configuration: Configuration
    time: Span


@dataclass(frozen=True, slots=True)
class Estimate:
    """The figures of `lorawatch estimate`.

    Attributes:
        memory: None where the model's shape is not known; `unknown` is the reason.
        places: This machine's GPUs first, then every known model by its memory.
        epochs: Configurations of the same work, the fastest first.
        nearest: Where no configuration has the same work: the nearest one, and what differs.
    """

    recipe: Recipe
    work: works.Work
    workload: Workload | None
    memory: MemoryEstimate | None
    unknown: str
    places: tuple[GpuFit, ...]
    tokens: int
    epochs: tuple[EpochTime, ...]
    nearest: str = ""


def estimate_recipe(
    recipe: Recipe, gathered: Gathered, gpus: Sequence[Gpu], tokens: int, world_size: int = 1
) -> Estimate:
    """Estimate memory and time; starts nothing and loads no torch.

    Args:
        gathered: The configurations of the history and the published tables.
        gpus: This machine's.
        tokens: Of the epoch.
        world_size: Ranks that train together; DDP keeps buckets of gradients.
    """
    wanted = works.facts(recipe.to_dict())
    needed, workload, unknown = None, None, ""
    places: tuple[GpuFit, ...] = ()
    try:
        workload = fit.workload(recipe, world_size)
        needed = estimate(workload)
        places = tuple(_places(workload, needed, gpus))
    except LorawatchError as error:
        unknown = str(error).replace("\n", ";")
    same = [c for c in gathered.configurations if not works.differences(c.work, wanted)]
    epochs: tuple[EpochTime, ...] = ()
    nearest = ""
    if same:
        counts = {len(gpus)} if gpus else set()
        rows = compare(same, tokens=tokens, extrapolate=counts).rows
        ordered = sorted(rows, key=lambda r: -r.configuration.tok_s.value)
        epochs = tuple(EpochTime(r.configuration, r.configuration.epoch_time(tokens)) for r in ordered)
    else:
        nearest = _nearest(wanted, gathered.configurations)
    return Estimate(recipe, wanted, workload, needed, unknown, places, tokens, epochs, nearest)


def memory_words(needed: MemoryEstimate, total: int, engine: str = "reference") -> str:
    """`needs about 21.9 of 31.8 GiB a GPU: fits`; the Launch screen's line."""
    fits = verdict(needed, total)
    return (
        f"needs {about(engine)} {needed.device_bytes / 2**30:.1f} of {total / 2**30:.1f} GiB a GPU: {fit_words(fits)}"
    )


def about(engine: str) -> str:
    """`about`, or `at most about` for the fast engine: the estimate is of the reference engine, which needs no less."""
    return "about" if engine == "reference" else "at most about"


def fit_words(fits: Fit) -> str:
    """`fits, 9.9 GiB to spare`, `does not fit, 3.1 GiB short`."""
    if fits.spare_bytes >= 0:
        return f"{fits.verdict}, {fits.spare_bytes / 2**30:.1f} GiB to spare"
    return f"{fits.verdict}, {-fits.spare_bytes / 2**30:.1f} GiB short"


def _places(workload: Workload, needed: MemoryEstimate, gpus: Sequence[Gpu]) -> list[GpuFit]:
    of_this_machine: dict[tuple[str, int], list[int]] = {}
    for gpu in gpus:
        if gpu.memory_total_bytes:
            of_this_machine.setdefault((clean(gpu.sku), gpu.memory_total_bytes), []).append(gpu.gpu_index)
    places = [_place(workload, needed, sku, total, tuple(where)) for (sku, total), where in of_this_machine.items()]
    here = {known.sku for sku, _ in of_this_machine if (known := find_sku(sku))}
    others = sorted((s for s in all_skus() if s.sku not in here), key=lambda s: (-s.memory_total_bytes, s.sku))
    return places + [_place(workload, needed, s.sku, s.memory_total_bytes, ()) for s in others]


def _place(workload: Workload, needed: MemoryEstimate, sku: str, total: int, here: tuple[int, ...]) -> GpuFit:
    fits = verdict(needed, total)
    advice = tuple(what_would_fit(workload, total)) if fits.verdict != "fits" else ()
    if fits.verdict == "does not fit" and not advice:
        advice = (f"only a smaller model would fit: the weights alone are {needed.weights / 2**30:.1f} GiB",)
    known = find_sku(sku)
    remark = ""
    if known is not None and workload.quantization == "fp8" and not known.fp8:
        remark = "it has no FP8"
    elif known is not None and workload.dtype_bytes == 2 and not known.bf16:
        remark = "it has no BF16"
    return GpuFit(sku.removeprefix("NVIDIA "), total, fits, here, advice, remark)


def _nearest(wanted: works.Work, configurations: Sequence[Configuration]) -> str:
    by_difference = [(works.differences(c.work, wanted), c) for c in configurations]
    if not by_difference:
        return "the history has no run yet: record a few steps of this recipe to get the time of an epoch"
    fewest, nearest = min(by_difference, key=lambda pair: len(pair[0]))
    return (
        f"neither the history nor a published table has this work; the nearest, {nearest.name} on {nearest.label}, has "
        f"{'; '.join(fewest)}. Record a few steps of this recipe: --set train.steps=60"
    )
