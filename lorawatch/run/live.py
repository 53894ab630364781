"""What a run looks like right now, gathered from its journal lines: the one model behind every live display."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from lorawatch.analysis.loss import mean_loss
from lorawatch.analysis.missing import whole_sum
from lorawatch.analysis.throughput import percentile, rate
from lorawatch.analysis.windows import STEP_JOIN_S, Span, length, union
from lorawatch.run.directory import RunInfo
from lorawatch.run.metrics import GPU_METRICS
from lorawatch.run.records import (
    AnyLine,
    Evaluation,
    Event,
    GpuSample,
    HostSample,
    LinesLost,
    PhaseChange,
    RankStarted,
    Step,
)
from lorawatch.text.numbers import rank_words

RECENT_STEPS = 20  # steps behind a live rate: long enough to be steady, short enough to follow a change
_RETAINED_STEPS = 4096
_REPORTS_WITHIN_S = 5.0  # ranks journal several times a second
_POWER_JOIN_S = 0.25  # the time between two readings of the power


@dataclass
class RankView:
    """A rank of the current attempt."""

    rank: int
    started: RankStarted | None = None
    phase: str = "starting"
    phase_detail: str | None = None
    phase_at: float | None = None
    """When that began, unix seconds."""
    last: Step | None = None
    last_seen_at: float | None = None
    """`time.monotonic()` of its last new step."""
    first_step_seen_at: float | None = None
    """Of its first one."""
    recent: deque[Step] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    @property
    def tok_s(self) -> float | None:
        """Tokens over wall time of the recent measured steps."""
        return rate(whole_sum(s.tokens for s in self.recent), sum(s.duration_s for s in self.recent))


@dataclass(frozen=True)
class StepTotal:
    """One step over all ranks.

    Attributes:
        duration_s: The slowest rank's wall time: what the step took.
        tokens: Summed over the ranks; None where one does not count them.
        loss: Mean over all label tokens.
    """

    attempt: int
    step: int
    ended_at: float
    duration_s: float
    tokens: int | None
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    phase: str

    @property
    def tok_s(self) -> float | None:
        return rate(self.tokens, self.duration_s)


class GpuView(GpuSample):
    """The last known reading of each metric; `sampled_at` says when any came, 0 before the first."""

    first_energy_j: float | None = None


class LiveView:
    """Takes journal lines in any order between files and keeps what a display needs; constant memory.

    Args:
        world_size: Ranks to wait for before a step counts as complete; 0 until the first rank says it.
        separate: The ranks train separately: they do a step of one number at different moments, so that the run's rate
            is the sum of theirs. `steps` pairs their steps by number all the same, for progress and loss.
        eval_every: Steps between two evaluations, beside the one at the end; None where there are none to come on the way.
    """

    def __init__(self, world_size: int = 0, *, separate: bool = False, eval_every: int | None = None) -> None:
        self.world_size = world_size
        self.separate = separate
        self._eval_every = eval_every
        self.attempt = 0
        self.ranks: dict[int, RankView] = {}
        self.gpus: dict[str, GpuView] = {}
        self.host: HostSample | None = None
        self.events: deque[Event] = deque(maxlen=200)
        self.steps: deque[StepTotal] = deque(maxlen=_RETAINED_STEPS)
        self.evaluations: deque[Evaluation] = deque(maxlen=_RETAINED_STEPS)
        """The run's, by step; a later attempt's in place of those that it made again."""
        self.best: Evaluation | None = None
        """The one with the lowest loss, of any attempt."""
        self.steps_total: int | None = None
        self.tokens = 0
        self.lines_lost = 0
        self.last_lost_step = 0
        """The last step of those whose lines the disk did not take."""
        self.last_step_seen_at: float | None = None
        """`time.monotonic()` of the last new step."""
        self.observer: Callable[[AnyLine], None] | None = None
        """Called with each line after the view has taken it."""
        self._partial: dict[int, dict[int, Step]] = {}
        self._slowest: deque[float] = deque(maxlen=1000)
        self._pauses: deque[float] = deque(maxlen=_RETAINED_STEPS)  # when a rank began with something else than steps

    @classmethod
    def of(cls, info: RunInfo) -> LiveView:
        """The view of a run, before its first line."""
        return cls(info.world_size, separate=info.separate, eval_every=info.eval_every)

    def feed(self, line: AnyLine) -> None:
        """Take one line."""
        match line:
            case Step():
                self._step(line)
            case GpuSample():
                self._gpu(line)
            case HostSample():
                self.host = line
            case RankStarted():
                self._started(line)
            case PhaseChange():
                if line.name != "training":
                    self._pauses.append(line.at)
                if line.attempt == self.attempt:
                    rank = self._rank(line.rank)
                    rank.phase, rank.phase_detail, rank.phase_at = line.name, line.detail, line.at
            case Evaluation():
                self._evaluated(line)
            case Event():
                self.events.append(line)
            case LinesLost():
                self.lines_lost += line.lines
                self.last_lost_step = max(self.last_lost_step, line.last_step or 0)
        if self.observer is not None:
            self.observer(line)

    def _rank(self, number: int) -> RankView:
        return self.ranks.setdefault(number, RankView(number))

    def _started(self, line: RankStarted) -> None:
        if line.attempt > self.attempt:
            self.attempt = line.attempt
            self.ranks.clear()
            self._partial.clear()
        if line.attempt == self.attempt:
            self.world_size = line.world_size
            self._rank(line.rank).started = line
            self.steps_total = line.steps_total or self.steps_total

    def _step(self, line: Step) -> None:
        if line.attempt < self.attempt:
            return
        rank = self._rank(line.rank)
        rank.last = line
        if line.phase == "train":
            rank.recent.append(line)
        self.last_step_seen_at = rank.last_seen_at = time.monotonic()
        rank.first_step_seen_at = rank.first_step_seen_at or rank.last_seen_at
        parts = self._partial.setdefault(line.step, {})
        parts[line.rank] = line
        if len(parts) < max(self.world_size, 1):
            if len(self._partial) > _RETAINED_STEPS:  # of ranks that do not all report none ever is complete
                del self._partial[next(iter(self._partial))]
            return
        del self._partial[line.step]
        total = combine(list(parts.values()))
        if self.steps and self.steps[-1].step >= total.step:  # a restart repeats steps: the later attempt counts
            while self.steps and self.steps[-1].step >= total.step:
                self.tokens -= self.steps.pop().tokens or 0
        self.steps.append(total)
        self.tokens += total.tokens or 0
        if total.phase == "train":
            self._slowest.append(total.duration_s)

    def _evaluated(self, line: Evaluation) -> None:
        if line.rank != 0:  # of ranks that train separately rank 0's counts
            return
        while self.evaluations and self.evaluations[-1].step >= line.step:
            self.evaluations.pop()
        self.evaluations.append(line)
        if line.loss is not None and (self.best is None or self.best.loss is None or line.loss < self.best.loss):
            self.best = line

    def _gpu(self, line: GpuSample) -> None:
        view = self.gpus.setdefault(line.gpu_uuid, GpuView(sampled_at=0.0, gpu_uuid=line.gpu_uuid))
        view.sampled_at = max(view.sampled_at, line.sampled_at)
        for metric in GPU_METRICS:
            value = metric.value(line)
            if value is not None:
                setattr(view, metric.column, value)
        if view.first_energy_j is None:
            view.first_energy_j = line.energy_j

    @property
    def silent_ranks(self) -> list[int]:
        """Ranks that never reported although another has taken steps, which none of a group takes alone: they do not
        report. Empty while that may only be a matter of moments."""
        first = min((r.first_step_seen_at for r in self.ranks.values() if r.first_step_seen_at), default=None)
        if self.separate or first is None or time.monotonic() - first < _REPORTS_WITHIN_S:
            return []
        heard = {rank for rank, view in self.ranks.items() if view.started is not None}
        return [rank for rank in range(self.world_size) if rank not in heard]

    @property
    def step(self) -> int:
        """The last step that all ranks have done; of ranks that do not all report, that any has done."""
        if self.silent_ranks:
            return max((r.last.step for r in self.ranks.values() if r.last), default=0)
        return self.steps[-1].step if self.steps else 0

    def _recent(self) -> list[StepTotal]:
        recent: list[StepTotal] = []
        for total in reversed(self.steps):
            if total.phase == "train":
                recent.append(total)
            if len(recent) == RECENT_STEPS:
                break
        return recent

    @property
    def tok_s(self) -> float | None:
        """Aggregate over all ranks, of the recent measured steps."""
        if self.separate:
            # Who has finished computes no more; after the last has, what they did at the end is what there is.
            busy = [r for r in self.ranks.values() if r.phase == "training"] or list(self.ranks.values())
            return whole_sum(r.tok_s for r in busy)
        recent = self._recent()
        spans = self._spans(recent, STEP_JOIN_S, sorted(self._pauses))
        return rate(whole_sum(s.tokens for s in recent), length(spans))

    @property
    def recent_spans(self) -> list[Span]:
        """When the steps behind `tok_s` ran, unix seconds: without the evaluations and checkpoints between them."""
        return self._spans(self._recent(), _POWER_JOIN_S)

    @staticmethod
    def _spans(steps: list[StepTotal], join_s: float, pauses: Sequence[float] = ()) -> list[Span]:
        return union(((s.ended_at - s.duration_s, s.ended_at) for s in steps), join_s=join_s, pauses=pauses)

    @property
    def loss(self) -> float | None:
        return self.steps[-1].loss if self.steps else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the recent pace of the steps, with the evaluations to come; None before there is a step."""
        recent = self._recent()
        if not recent or not self.steps_total:
            return None
        steps = max(self.steps_total - self.step, 0) * median(s.duration_s for s in recent)
        took = [e.duration_s for e in list(self.evaluations)[-RECENT_STEPS:] if e.duration_s is not None]
        return steps + self._evaluations_left() * median(took) if took else steps

    def _evaluations_left(self) -> int:
        done, total, every = self.step, self.steps_total or 0, self._eval_every
        if every is None:
            return 0
        on_the_way = total // every - done // every
        return on_the_way + (1 if total % every and done < total else 0)

    def usual_step_s(self) -> float | None:
        """The 99th percentile of step time: what "longer than usual" is measured against."""
        if len(self._slowest) < 3:
            return None
        return percentile(self._slowest, 0.99)

    def power_w(self, uuids: set[str] | None = None) -> float | None:
        """Present power of these GPUs together; None where any of them has no reading."""
        views = [g for u, g in self.gpus.items() if uuids is None or u in uuids]
        return whole_sum(g.power_w for g in views)


def silent_words(ranks: list[int], world_size: int) -> str:
    """What it means that some ranks do not report, for people.

    Args:
        ranks: Those that do not.
    """
    return (
        f"{rank_words(ranks)} of {world_size} {'do' if len(ranks) > 1 else 'does'} not report steps, so that totals over all "
        "ranks are not known; StepCallback in every rank's Trainer brings them"
    )


def combine(parts: list[Step]) -> StepTotal:
    """One step's lines of all ranks as a total. The step takes as long as its slowest rank."""
    tokens = whole_sum(s.tokens for s in parts)
    first = parts[0]
    return StepTotal(
        attempt=first.attempt,
        step=first.step,
        ended_at=max(s.ended_at for s in parts),
        duration_s=max(s.duration_s for s in parts),
        tokens=None if tokens is None else round(tokens),
        loss=mean_loss([s.loss for s in parts], [s.label_tokens for s in parts]),
        grad_norm=next((s.grad_norm for s in parts if s.grad_norm is not None), None),
        learning_rate=first.learning_rate,
        phase=first.phase,
    )
