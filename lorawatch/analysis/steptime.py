"""A model of the step's time, for GPU counts that were not measured.

t(n) = compute + allreduce · 2(n − 1)/n. A ring all-reduce makes every rank send and receive 2(n − 1)/n of the gradient
(Patarasuk and Yuan 2009, Journal of Parallel and Distributed Computing 69); under weak scaling each rank computes the
same whatever n is. Other costs that grow with n (shared power and PCIe, waiting for the slowest rank) are in the second
term as far as they grow alike. A network between hosts is included only if a measured point used one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.analysis.interval import Figure, ratio
from lorawatch.analysis.throughput import student_t95

# A run's own interval does not show differences from start to start, and a formula of two terms is not exact: a measured step
# time may depart from it by this share. The published tables of RTX PRO cards depart by 0.2%.
TOLERANCE = 0.01
# Further out the ring's term hardly grows; what does grow there (hosts, switches) is in no measured point.
MOST_TIMES_MEASURED = 8


class CannotExtrapolate(ValueError):
    """The measured points do not allow the extrapolation; the message gives the reason in a sentence."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measured configuration."""

    gpus: int
    step_s: Figure
    """Seconds a step."""
    tokens_per_gpu: float = 1.0
    """Tokens that one GPU computes in a step; 1 where the time is that of each GPU's one token, n ÷ tok/s."""


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """A fitted model. Its figures are extrapolated, unless that number of GPUs was measured."""

    compute_s: Figure
    """Seconds of a step that do not depend on the number of GPUs."""
    allreduce_s: Figure
    """Seconds to send one gradient: a step spends 2(n − 1)/n times as much. Not below 0."""
    tokens_per_gpu: float
    measured: tuple[int, ...]
    """The numbers of GPUs that were measured, in order."""
    covariance: float
    """Of the two terms, in squared half widths."""
    departure: float
    """Share of a step's time by which a single measurement departs from the fit, as a half width."""

    def extrapolated(self, gpus: int) -> bool:
        """Whether that number of GPUs was not measured, so that its figures must be marked."""
        return gpus not in self.measured

    def step_s(self, gpus: int) -> Figure:
        """Seconds of a step on a number of GPUs.

        Returns:
            With a prediction interval: of the fit, and of one more measurement around it. None where the points'
            noise is not known.

        Raises:
            CannotExtrapolate: Fewer than one GPU, or more than 8 times as many as measured.
        """
        if gpus < 1:
            raise CannotExtrapolate(f"{gpus} is no number of GPUs")
        if gpus > MOST_TIMES_MEASURED * self.measured[-1]:
            raise CannotExtrapolate(
                f"{gpus} GPUs are too far from the {self.measured[-1]} that were measured: "
                f"at most {MOST_TIMES_MEASURED * self.measured[-1]}"
            )
        way = _way(gpus)
        seconds = self.compute_s.value + way * self.allreduce_s.value
        if self.compute_s.ci95 is None or self.allreduce_s.ci95 is None:
            return Figure(seconds, None)
        fit = self.compute_s.ci95**2 + 2 * way * self.covariance + (way * self.allreduce_s.ci95) ** 2
        return Figure(seconds, math.sqrt(max(fit, 0.0) + (self.departure * seconds) ** 2))

    def tok_s(self, gpus: int) -> Figure:
        """Tokens a second of all GPUs together, with a prediction interval.

        Raises:
            CannotExtrapolate: As `step_s`.
        """
        return ratio(Figure(gpus * self.tokens_per_gpu, 0.0), self.step_s(gpus))


def fit(points: Sequence[Point]) -> StepTimeModel:
    """Fit the model by weighted least squares; a point weighs by its interval, widened by `TOLERANCE`.

    Intervals of predictions come from the points' own, widened in the same way; where one has none, from the points'
    distances to the fit (Student's t, points − 2 degrees of freedom), not below `TOLERANCE`, since few points can lie on
    a line by chance. Two such points give no interval. Several points of one GPU count are fine.

    Raises:
        CannotExtrapolate: Fewer than two GPU counts, or two that are too close; points of different tokens per GPU; a
            step time that is not positive; steps that became faster with more GPUs beyond their noise; a point that
            contradicts the others.
    """
    counts = _checked(points)
    # a point without an interval weighs as the least certain of the others
    unsure = max(p.step_s.relative or 0.0 for p in points)
    widths = [
        math.hypot(unsure * p.step_s.value if p.step_s.ci95 is None else p.step_s.ci95, TOLERANCE * p.step_s.value)
        for p in points
    ]
    weights = [1 / w**2 for w in widths]
    ways = [_way(p.gpus) for p in points]
    times = [p.step_s.value for p in points]
    weight = math.fsum(weights)
    way = _mean(ways, weights)
    spread = math.fsum(w * (x - way) ** 2 for w, x in zip(weights, ways, strict=True))
    slope = math.fsum(w * (x - way) * t for w, x, t in zip(weights, ways, times, strict=True)) / spread
    if slope < -math.sqrt(1 / spread):
        raise CannotExtrapolate(
            f"steps became faster from {counts[0]} to {counts[-1]} GPUs, beyond their noise: "
            "something other than the number of GPUs changed"
        )
    slope = max(slope, 0.0)  # a lower value is within its noise of 0
    compute = _mean(times, weights) - slope * way
    if compute <= 0:
        raise CannotExtrapolate(
            "the all-reduce would take more than the whole step: the points do not follow a ring's time"
        )
    misses = [t - compute - slope * x for x, t in zip(ways, times, strict=True)]
    point, miss, width = max(zip(points, misses, widths, strict=True), key=lambda triple: abs(triple[1]) / triple[2])
    if abs(miss) > width:
        raise CannotExtrapolate(
            f"the step time measured on {_gpus(point.gpus)}, {point.step_s.value:.4g} s, contradicts the other points: "
            f"the fit says {point.step_s.value - miss:.4g} s, and {width:.2g} s more or less would be noise"
        )
    scale = _scale(points, misses, widths)
    variance_compute = 1 / weight + way**2 / spread
    return StepTimeModel(
        compute_s=Figure(compute, None if scale is None else scale * math.sqrt(variance_compute)),
        allreduce_s=Figure(slope, None if scale is None else scale * math.sqrt(1 / spread)),
        tokens_per_gpu=points[0].tokens_per_gpu,
        measured=counts,
        covariance=0.0 if scale is None else -(scale**2) * way / spread,
        departure=0.0
        if scale is None
        else scale * math.sqrt(math.fsum((w / t) ** 2 for w, t in zip(widths, times, strict=True)) / len(points)),
    )


def _way(gpus: int) -> float:
    """How many times a gradient's size each rank of a ring all-reduce sends: 0 for one GPU, towards 2 for many."""
    return 2 * (gpus - 1) / gpus


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _scale(points: Sequence[Point], misses: Sequence[float], widths: Sequence[float]) -> float | None:
    """The factor that makes the widths half widths of 95% intervals; None where the points do not determine it."""
    if all(p.step_s.ci95 is not None for p in points):
        return 1.0
    free = len(points) - 2
    if free < 1:
        return None
    squares = math.fsum((m / w) ** 2 for m, w in zip(misses, widths, strict=True))
    return max(1.0, student_t95(free) * math.sqrt(squares / free))


def _checked(points: Sequence[Point]) -> tuple[int, ...]:
    """The GPU counts in order, of points that can be fitted."""
    for point in points:
        if point.gpus < 1 or not 0 < point.step_s.value < math.inf or not 0 < point.tokens_per_gpu < math.inf:
            raise CannotExtrapolate(
                f"a point of {point.gpus} GPUs, {point.step_s.value:g} s and {point.tokens_per_gpu:g} tokens is no measurement"
            )
    counts = tuple(sorted({p.gpus for p in points}))
    if len(counts) < 2:
        only = f"only {_gpus(counts[0])} measured" if counts else "nothing measured"
        raise CannotExtrapolate(f"{only}: what more GPUs cost shows in runs of at least two GPU counts")
    if counts[0] > 1 and counts[-1] < 2 * counts[0]:
        raise CannotExtrapolate(
            f"{counts[0]} and {counts[-1]} GPUs are too close to tell the all-reduce from the rest: measure 1 GPU as well"
        )
    tokens = {p.tokens_per_gpu for p in points}
    if max(tokens) > min(tokens) * (1 + 1e-9):
        raise CannotExtrapolate(
            f"the points differ in tokens a step of one GPU ({min(tokens):g} to {max(tokens):g}): "
            "only runs of the same batch per GPU show what more GPUs cost"
        )
    return counts
