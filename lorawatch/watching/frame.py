"""One moment of a run or of a machine as a screen shows it: frozen plain data that may cross threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorawatch.run.records import Event, Severity
from lorawatch.watching.curves import CurveData
from lorawatch.watching.final import FiguresOf


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should see, shown by a glyph and a word and not by colour alone.

    Attributes:
        kind: straggler, throttled, vram, nan_loss, stale, slow, restarted, gpu_lost, no_recorder, silent or
            partial.
        where: The pane's key it belongs to; None for the whole run.
    """

    kind: str
    severity: Severity
    glyph: str
    word: str
    text: str
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Pane:
    """A GPU, or a rank on the CPU.

    Attributes:
        key: GPU UUID, or `rank-0`.
        title: `0 · RTX PRO 4500`.
        rank: The rank that computes there; None where none is known.
        used: Whether the run uses it; True without a run.
        values: By name of `lorawatch.run.metrics.PANE_METRICS`. A missing reading is None; a metric that the device does
            not have at all is absent.
        limits: Power limit and memory size under the same names.
        curves: Their history.
        capped: Share of recent samples whose clocks the power limit held back, 0 to 1; None where unknown.
        note: What the rank is busy with outside its steps.
        stale_s: Age of the last reading where it is too old to be believed.
        step: The last step that the rank has done.
    """

    key: str
    title: str
    rank: int | None
    used: bool
    values: Mapping[str, float | None]
    limits: Mapping[str, float | None]
    curves: Mapping[str, CurveData]
    capped: float | None = None
    note: str = ""
    stale_s: float | None = None
    lost: bool = False
    alerts: tuple[Alert, ...] = ()
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The run as a whole; missing figures are None.

    Attributes:
        machine: Where it runs or ran: `node7 · 4×RTX PRO 4500`.
        figures_of: What rates, power and energy are of. `recent`: the recent steps, this moment, and the time since
            recording began; after the end, `steps` or `run`: the figures of `lorawatch show`.
        energy_j: Of the GPUs the run uses; `energy_all_j` of every GPU in the host.
        eval_loss: Of the last evaluation, after `eval_step`; `best_eval_loss` is the lowest.
    """

    run_id: str
    name: str
    state: str
    failure: str | None
    message: str | None
    step: int
    steps_total: int | None
    attempt: int
    phase: str
    elapsed_s: float | None
    eta_s: float | None
    tok_s: float | None
    tok_per_j: float | None
    power_w: float | None
    power_all_w: float | None
    energy_j: float | None
    energy_all_j: float | None
    loss: float | None
    grad_norm: float | None
    eval_loss: float | None
    eval_step: int | None
    best_eval_loss: float | None
    best_eval_step: int | None
    mfu: float | None
    own_command: bool
    recorder_alive: bool
    machine: str
    loss_curve: CurveData | None = None
    figures_of: FiguresOf = "recent"


@dataclass(frozen=True, slots=True)
class Replaying:
    """Where a replay stands: seconds since the run began, its length, and the speed; 0 is paused."""

    position_s: float
    length_s: float
    speed: float
    paused: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything the Live screen shows.

    Attributes:
        at: Unix time it is true for; where the time axis of the curves ends.
        head: The run; None for the machine alone.
        begin: Where the time axis of the curves begins.
        origin: When the run began.
        others: Ids of other runs that live at once, in order, this one included.
        host: One line about CPU, memory, disk.
        notice: Why less is shown than a person would expect, or "".
    """

    at: float
    begin: float
    head: Head | None
    panes: tuple[Pane, ...]
    alerts: tuple[Alert, ...] = ()
    events: tuple[Event, ...] = ()
    host: str = ""
    notice: str = ""
    others: tuple[str, ...] = ()
    replay: Replaying | None = None
    origin: float = 0.0
    log: tuple[str, tuple[str, ...]] = field(default=("", ()))
