"""Turns journal lines into frames: the same for a live run, a replay and the machine alone."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from lorawatch.analysis.clocks import share
from lorawatch.analysis.staleness import stale_age
from lorawatch.analysis.throughput import rate
from lorawatch.run.clock_reasons import SLOWDOWN_WORDS, ClockReason
from lorawatch.run.directory import ENDED, Gpu, RunInfo, RunState
from lorawatch.run.live import GpuView, LiveView, RankView, StepTotal
from lorawatch.run.metrics import GPU_METRICS, HOST_METRICS
from lorawatch.run.records import AnyLine, Evaluation, Event, GpuSample, HostSample, RankStarted, Step
from lorawatch.text.sanitize import clean
from lorawatch.watching import alerts
from lorawatch.watching.curves import Curve, CurveData
from lorawatch.watching.final import RunFigures
from lorawatch.watching.frame import Alert, Frame, Head, Pane
from lorawatch.watching.recent import recent_figures

if TYPE_CHECKING:
    from lorawatch.storage.past import Past

MONITOR_S = 120.0
_RECENT_REASONS = 150
_RECENT_POWER = 3000
_LOADING_SHARE = 0.25
_GPU_METRICS = tuple(m for m in GPU_METRICS if m.label)


class Watch:
    """Everything known of one run (or of this machine), and its frame at a moment.

    A frame depends on the lines fed and on the time asked for, never on the clock: what a replay shows at a moment is
    what was shown then.

    Args:
        info: The run; None for the machine alone.
        gpus: The machine's GPUs where there is no run.
        view: One that others feed; `take` then gets each line that it has taken. None makes one that `feed` feeds.

    Attributes:
        final: The figures of a run that has ended, once the history has them: frames then show these.
    """

    def __init__(self, info: RunInfo | None, gpus: list[Gpu] | None = None, *, view: LiveView | None = None) -> None:
        self.info = info
        self.gpus = list(info.gpus if info else gpus or [])
        self.view = view or (LiveView.of(info) if info else LiveView(0))
        self.final: RunFigures | None = None
        self.lost: set[str] = set()
        self._curves: dict[str, dict[str, Curve]] = {}
        self._loss = Curve(width_s=0.05)
        self._reasons: dict[str, deque[int]] = {}
        self._power: dict[str, deque[tuple[float, float]]] = {}
        self._first_at: float | None = None
        self._steps_at: float | None = None
        self._last_at = 0.0
        self._last_total: StepTotal | None = None

    def feed(self, line: AnyLine) -> None:
        """Take one journal line."""
        self.view.feed(line)
        self.take(line)

    def take(self, line: AnyLine) -> None:
        """Take one journal line that the view has taken."""
        match line:
            case GpuSample():
                self._saw(line.sampled_at)
                curves = self._curves_of(line.gpu_uuid)
                for metric in _GPU_METRICS:
                    value = metric.value(line)
                    if value is not None:
                        self._curve(curves, metric.name).add(line.sampled_at, value)
                if line.power_w is not None:
                    self._power.setdefault(line.gpu_uuid, deque(maxlen=_RECENT_POWER)).append(
                        (line.sampled_at, line.power_w)
                    )
                if line.event_reasons is not None:
                    self._reasons.setdefault(line.gpu_uuid, deque(maxlen=_RECENT_REASONS)).append(line.event_reasons)
            case Step():
                self._saw(line.ended_at)
                if self._steps_at is None:
                    self._steps_at = line.ended_at - line.duration_s
                curves = self._curves_of(self._key(line.rank))
                if line.duration_s > 0 and line.phase == "train":
                    self._curve(curves, "tok_s").add(line.ended_at, rate(line.tokens, line.duration_s))
                    self._curve(curves, "step_ms").add(line.ended_at, 1000 * line.duration_s)
                if line.data_wait_s is not None:
                    self._curve(curves, "data_wait_ms").add(line.ended_at, 1000 * line.data_wait_s)
                self._curve(curves, "loss").add(line.ended_at, line.loss)
                steps = self.view.steps
                if steps and steps[-1] is not self._last_total:
                    self._last_total = steps[-1]
                    self._loss.add(steps[-1].ended_at, steps[-1].loss)
            case HostSample():
                self._saw(line.sampled_at)
            case Evaluation():
                self._saw(line.ended_at)
            case RankStarted():
                self._saw(line.at)
            case Event():
                self._saw(line.at)
                if line.kind == "gpu_lost" and line.detail:
                    self.lost.add(str(line.detail.get("gpu_uuid")))

    def seed(self, past: Past) -> None:
        """Take what the history has of the run, before any line behind it."""
        for start in past.starts:
            self.feed(start)
        for key, bins in (
            *past.gpu_bins.items(),
            *((self._key(rank), rank_bins) for rank, rank_bins in past.rank_bins.items()),
        ):
            curves = self._curves_of(key)
            for metric, at, low, high in bins:
                curve = self._curve(curves, metric)
                curve.add(at, low)
                curve.add(at, high)
        self._steps_at = min((at for bins in past.rank_bins.values() for _, at, _, _ in bins), default=None)
        for _, at, low, high in past.loss_bins:
            self._loss.add(at, low)
            self._loss.add(at, high)
        for line in past.lines:  # behind the bins: a curve begins at its first value
            self.feed(line)

    def _saw(self, at: float) -> None:
        if self._first_at is None or at < self._first_at:
            self._first_at = at
        self._last_at = max(self._last_at, at)

    def _curves_of(self, key: str) -> dict[str, Curve]:
        return self._curves.setdefault(key, {})

    def _curve(self, curves: dict[str, Curve], metric: str) -> Curve:
        curve = curves.get(metric)
        if curve is None:
            curve = curves[metric] = Curve(sliding=True) if self.info is None else Curve()
        return curve

    def _key(self, rank: int) -> str:
        started = self.view.ranks[rank].started if rank in self.view.ranks else None
        return (started.gpu_uuid if started else None) or f"rank-{rank}"

    # --- the frame

    def frame(
        self, at: float, state: RunState | None = None, *, recorder_alive: bool = True, silence: str = ""
    ) -> Frame:
        """What is shown at unix time `at`.

        Args:
            recorder_alive: Whether the run has its recorder, as far as can be seen from here.
            silence: For how long a recorder on another host was not heard, in words; empty where it is heard.
        """
        ended = state is not None and state.state in ENDED
        until = _until(at, state)
        began = min(self._first_at or until, until - 1.0)
        begin = until - MONITOR_S if self.info is None else self._axis_begin(began, until)
        panes = self._panes(until, ended)
        everywhere = [a for p in panes for a in p.alerts]
        head = self.head(at, state, recorder_alive=recorder_alive)
        if head is not None:
            everywhere = [*self._run_alerts(head, until), *everywhere]
            if silence and not ended:
                everywhere.insert(0, alerts.silent(silence))
        return Frame(
            at=until,
            begin=begin,
            origin=began,
            head=head,
            panes=panes,
            alerts=tuple(everywhere),
            events=tuple(self.view.events),
            host=_host_words(self.view.host),
        )

    def head(self, at: float, state: RunState | None = None, *, recorder_alive: bool = True) -> Head | None:
        """The run as a whole at unix time `at`, as in that moment's frame; None for the machine alone."""
        if self.info is None:
            return None
        return self._head(self.info, state or RunState(), _until(at, state), recorder_alive)

    def _axis_begin(self, began: float, until: float) -> float:
        """The whole run, but of a loading longer than the steps so far only as much as leaves them most of the width."""
        if self._steps_at is None:
            return began
        return max(began, self._steps_at - _LOADING_SHARE * max(until - self._steps_at, 1.0))

    def _run_alerts(self, head: Head, at: float) -> list[Alert]:
        view = self.view
        # A number that is none cannot stand in a journal's line: the rank that saw it tells it as an event.
        nan_event = next((e for e in reversed(view.events) if e.kind == "nan_loss"), None)
        raised = [
            alerts.bad_loss(nan_event),
            alerts.restarted(head.attempt),
            alerts.not_reporting(view.silent_ranks, view.world_size),
        ]
        if not head.recorder_alive:
            raised.insert(0, alerts.no_recorder(head.run_id))
        if head.state not in ENDED:
            stepping = any(r.phase in ("training", "starting") or r.last for r in view.ranks.values())
            busy = any(r.phase in ("evaluating", "saving", "finished") for r in view.ranks.values())
            if view.steps and stepping and not busy:
                # An evaluation or a checkpoint behind the last step is no silence of steps.
                resumed = max((r.phase_at or 0.0 for r in view.ranks.values() if r.phase == "training"), default=0.0)
                raised.append(alerts.slow(at - max(view.steps[-1].ended_at, resumed), view.usual_step_s()))
        return [a for a in raised if a is not None]

    def _head(self, info: RunInfo, state: RunState, at: float, recorder_alive: bool) -> Head:
        view = self.view
        ended = state.state in ENDED
        figures = (
            self.final
            if ended and self.final is not None
            else recent_figures(info, self.view, self._power, ended=ended)
        )
        began = state.started_at or info.created_at
        phases = [r for r in view.ranks.values() if r.phase]
        return Head(
            run_id=info.run_id,
            name=clean(info.name),
            state="lost" if not recorder_alive and not ended else state.state,
            failure=state.failure,
            message=clean(state.message) if state.message else None,
            step=view.step,
            steps_total=view.steps_total or state.steps_total,
            attempt=view.attempt,
            phase=_phase_words(phases[0]) if phases else "starting the workers",
            elapsed_s=max(at - began, 0.0),
            eta_s=None if ended else view.eta_s,
            tok_s=figures.tok_s,
            tok_per_j=figures.tok_per_j,
            power_w=figures.power_w,
            power_all_w=figures.power_all_w,
            energy_j=figures.energy_j,
            energy_all_j=figures.energy_all_j,
            loss=figures.loss,
            grad_norm=view.steps[-1].grad_norm if view.steps else None,
            eval_loss=view.evaluations[-1].loss if view.evaluations else None,
            eval_step=view.evaluations[-1].step if view.evaluations else None,
            best_eval_loss=view.best.loss if view.best else None,
            best_eval_step=view.best.step if view.best else None,
            mfu=figures.mfu,
            own_command=info.own_command,
            recorder_alive=recorder_alive,
            machine=f"{clean(info.host)} · {gpus_words(info.gpus)}",
            figures_of=figures.figures_of,
            loss_curve=self._loss.data(),
        )

    def _panes(self, at: float, ended: bool) -> tuple[Pane, ...]:
        view = self.view
        by_gpu = {self._key(r): view.ranks[r] for r in sorted(view.ranks)}
        step_s = {r.rank: median(s.duration_s for s in r.recent) for r in view.ranks.values() if len(r.recent) >= 5}
        slow_ranks = {a.where: a for a in alerts.stragglers(step_s, {r: self._key(r) for r in view.ranks})}
        gpus = self.info.gpus if self.info is not None else self.gpus
        used = any(g.used for g in gpus) or self.info is None
        shown = sorted(gpus, key=lambda g: (not g.used, g.gpu_index)) if used else gpus
        if self.info is not None and self.info.device == "cpu":
            shown = []
        panes = [
            self._gpu_pane(gpu, by_gpu.get(gpu.gpu_uuid), at, ended, slow_ranks.get(gpu.gpu_uuid)) for gpu in shown
        ]
        known = {p.key for p in panes}
        if self.info is not None:
            panes += [
                self._rank_pane(view.ranks[rank], slow_ranks.get(self._key(rank)))
                for rank in sorted(view.ranks)
                if self._key(rank) not in known
            ]
            if not panes and not self.info.own_command:
                panes = [
                    Pane(f"rank-{r}", f"rank {r}", r, True, {"tok_s": None}, {}, {}, note="starting")
                    for r in range(self.info.world_size)
                ]
        return tuple(panes)

    def _gpu_pane(self, gpu: Gpu, rank: RankView | None, at: float, ended: bool, straggler: Alert | None) -> Pane:
        now = self.view.gpus.get(gpu.gpu_uuid) or GpuView(sampled_at=0.0, gpu_uuid=gpu.gpu_uuid)
        sku = clean(gpu.sku).removeprefix("NVIDIA ")
        name = f"GPU {gpu.gpu_index}"
        lost = gpu.gpu_uuid in self.lost
        stale = None if ended or lost or not now.sampled_at else stale_age(at - now.sampled_at)
        shares = self._shares(gpu.gpu_uuid)
        raised = [
            alerts.gpu_lost(gpu.gpu_uuid, name) if lost else alerts.stale(stale, gpu.gpu_uuid, name),
            alerts.throttled(shares, gpu.gpu_uuid, name),
            alerts.vram_full(now.memory_used_bytes, gpu.memory_total_bytes, gpu.gpu_uuid, name),
            straggler,
        ]
        read = {m.name: m.value(now) for m in _GPU_METRICS}
        absent = {m.name for m in _GPU_METRICS if m.optional and read[m.name] is None}
        values: dict[str, float | None] = {name: value for name, value in read.items() if name not in absent}
        if self.info is not None:
            values = {"tok_s": rank.tok_s if rank else None, **values}
        return Pane(
            key=gpu.gpu_uuid,
            title=f"{gpu.gpu_index} · {sku}",
            rank=rank.rank if rank else None,
            step=rank.last.step if rank and rank.last else None,
            used=gpu.used or self.info is None,
            values=values,
            limits={"power_w": now.power_limit_w or gpu.power_limit_w, "memory_bytes": gpu.memory_total_bytes},
            curves=self._data(gpu.gpu_uuid),
            capped=shares.get(ClockReason.POWER_CAP),
            note=_gpu_note(gpu, rank, ended) if self.info is not None else "",
            stale_s=stale,
            lost=lost,
            alerts=tuple(a for a in raised if a is not None),
        )

    def _rank_pane(self, rank: RankView, straggler: Alert | None) -> Pane:
        last = rank.last
        started = rank.started
        where = clean(started.gpu_name or started.device) if started else ""
        return Pane(
            key=self._key(rank.rank),
            title=f"rank {rank.rank}" + (f" · {where.upper() if where == 'cpu' else where}" if where else ""),
            rank=rank.rank,
            step=last.step if last else None,
            used=True,
            values={
                "tok_s": rank.tok_s,
                "step_ms": 1000 * last.duration_s if last else None,
                "loss": last.loss if last else None,
                "data_wait_ms": 1000 * last.data_wait_s if last and last.data_wait_s is not None else None,
            },
            limits={},
            curves=self._data(self._key(rank.rank)),
            note=_note(rank),
            alerts=(straggler,) if straggler else (),
        )

    def _data(self, key: str) -> dict[str, CurveData]:
        curves = {name: curve.data() for name, curve in self._curves.get(key, {}).items()}
        return {name: data for name, data in curves.items() if data is not None}

    def _shares(self, uuid: str) -> dict[int, float]:
        shares = {bit: share(self._reasons.get(uuid, ()), bit) for bit in (ClockReason.POWER_CAP, *SLOWDOWN_WORDS)}
        return {bit: part for bit, part in shares.items() if part is not None}


def _until(at: float, state: RunState | None) -> float:
    """The moment that is shown at unix time `at`: of a run that has ended, no later than its end."""
    return min(at, state.ended_at or at) if state is not None and state.state in ENDED else at


def _gpu_note(gpu: Gpu, rank: RankView | None, ended: bool) -> str:
    if not gpu.used:
        return "not used by the run"
    return "when the run ended" if ended else _note(rank) if rank else ""


def _note(rank: RankView) -> str:
    return "" if rank.phase in ("training", "finished") else _phase_words(rank)


def _phase_words(rank: RankView) -> str:
    return f"{rank.phase}: {clean(rank.phase_detail)}" if rank.phase_detail else rank.phase


def _host_words(host: HostSample | None) -> str:
    if host is None:
        return ""
    words = []
    by_column = {m.column: m for m in HOST_METRICS}
    for metric in HOST_METRICS:
        value = metric.value(host)
        most = getattr(host, metric.limit) if metric.limit else None
        if not metric.label or value is None or (metric.optional and not value) or (metric.limit and not most):
            continue
        limit = by_column[metric.limit].write(most) if most else ""
        words.append(f"{metric.label} {metric.figure(value, limit)}")
    return "   ".join(words)


def gpus_words(gpus: list[Gpu]) -> str:
    """`4×RTX PRO 4500`."""
    skus = sorted({clean(g.sku).removeprefix("NVIDIA ") for g in gpus})
    return f"{len(gpus)}×{' + '.join(skus)}" if gpus else "no GPU"
