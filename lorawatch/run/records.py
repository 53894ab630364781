"""What a journal line says: one struct a kind of line, tagged by its key `t`.

Lines are flat JSON objects whose keys are the history's column names, so that the history can read them without a
translation table. Times are unix seconds (UTC). A reading that could not be had is absent from the line and None here,
never 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NewType

import msgspec
from msgspec import Meta

from lorawatch.system.processes import ProcessId

# Why a run ended badly; also the column `runs.failure`.
Failure = Literal[
    "cuda_oom",
    "host_oom",
    "python_exception",
    "nccl_timeout",
    "hang",
    "signal",
    "gpu_lost",
    "host_lost",
    "disk_full",
    "preempted",
    "nan_loss",
    "nonzero_exit",
]
Severity = Literal["info", "warning", "error"]
Phase = Literal["warmup", "train"]
# Of an event that this lorawatch writes; also the column `events.kind`.
EventKind = Literal[
    # the run's life
    "started",
    "restarted",
    "adopted",
    "stopping",
    "killing",
    "stop_unanswered",
    "ended",
    "ended_unseen",
    "orphans",
    "left_running",
    # its ranks
    "ranks_missing",
    "foreign_rank",
    "hang",
    "steps_back",
    "nan_loss",
    "packing",
    "compiled",
    "engine_fallback",
    "p2p",
    # what they save and evaluate
    "checkpoint",
    "checkpoint_failed",
    "checkpoint_refused",
    "checkpoint_unanswered",
    "resumed",
    "versions_changed",
    "evaluation_cut",
    "evaluation_nan",
    "evaluation_rows_changed",
    "best_not_saved",
    # the devices
    "telemetry_stale",
    "telemetry_back",
    "telemetry_error",
    "gpu_lost",
    "gpu_memory_errors",
    # the recording
    "disk_full",
    "journal_waits",
    "journal_back",
    "journal_cut",
    "history_waits",
    "history_back",
    "steps_missing",
    "state_not_written",
    "deleted",
    "taken",
    "display_lost",
]
LaterKind = NewType("LaterKind", str)
"""A kind that a reader meets and this lorawatch does not write: of a later version, or of an earlier one."""
if TYPE_CHECKING:
    AnyKind = EventKind | LaterKind
else:  # a reader takes any text: a line of a later version is worth as much as one of this
    AnyKind = str

# What a field may say: a line outside of these bounds is a broken line, for who watches a run as for the history, which
# derives its conditions from them. They hold off what no machine measures, and sums of many rows stay within 64 bits.
UnixTime = Annotated[float, Meta(ge=0, le=4_102_444_800)]
"""Until the year 2100; a clock that was never set begins in 1970."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Attempt = Annotated[int, Meta(ge=0, le=1_000_000)]
Rank = Annotated[int, Meta(ge=0, lt=65_536)]
WorldSize = Annotated[int, Meta(ge=1, le=65_536)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1024)]
"""Up to the last 64-bit integer that a double can hold: file systems without an end report about as much free space."""
Number = Annotated[float, Meta(ge=-1e39, le=1e39)]
"""Whatever fits a 32-bit float."""
Amount = Annotated[float, Meta(ge=0, le=1e39)]
Percent = Annotated[float, Meta(ge=0, le=1e6)]
Watts = Annotated[float, Meta(ge=0, le=1e6)]
Joules = Annotated[float, Meta(ge=0, le=1e15)]
Celsius = Annotated[float, Meta(ge=-300, le=10_000)]
Megahertz = Annotated[int, Meta(ge=0, le=1_000_000)]
Mask = Annotated[int, Meta(ge=0, lt=2**53)]


NOT_IN_HISTORY = frozenset({"process"})
"""Fields of lines that the history has no column for: they concern the recorder alone."""


class Record(msgspec.Struct, omit_defaults=True, tag_field="t", kw_only=True):
    """Base of all journal lines."""


class RankStarted(Record, tag="rank_started"):
    """A rank's first line of an attempt: who it is and what it trains.

    The model's facts are the same on every rank; `flops_per_token` follows DESIGN's LoRA formula.
    """

    at: UnixTime
    attempt: Attempt
    rank: Rank
    local_rank: Rank
    world_size: WorldSize
    host: str
    pid: Count
    """As the rank itself counts: in a container another number than the host's."""
    device: str
    """`cuda` or `cpu`."""
    gpu_uuid: str | None = None
    """As the GPU's driver writes it, `GPU-…`, whichever devices the rank sees."""
    gpu_name: str | None = None
    torch_version: str | None = None
    steps_total: Count | None = None
    parameters: Count | None = None
    lora_parameters: Count | None = None
    flops_per_token: Amount | None = None
    dtype: str | None = None
    """Base weights' number format, as torch names it: `bfloat16`."""
    process: ProcessId | None = None
    """Which process it is, for the recorder; not in the history."""


class Step(Record, tag="step"):
    """One rank's optimizer step.

    Its wall time runs from the end of the step before, or from the end of an evaluation or a checkpoint in between, so
    that the durations of a window add up to its wall time.
    """

    attempt: Attempt
    rank: Rank
    step: Count
    """Counts from 1, as the Trainer's global_step after the step."""
    ended_at: UnixTime
    duration_s: Seconds
    tokens: Count | None = None
    """Positions computed on this rank, padding included."""
    nonpad_tokens: Count | None = None
    label_tokens: Count | None = None
    """Positions that the loss is taken over."""
    loss: Number | None = None
    """Mean over this rank's label tokens."""
    grad_norm: Amount | None = None
    learning_rate: Number | None = None
    data_wait_s: Seconds | None = None
    memory_allocated_bytes: Bytes | None = None
    """Peak of torch's allocations on the rank's device since the attempt began."""
    memory_reserved_bytes: Bytes | None = None
    phase: Phase = "train"
    """`warmup`: the first `measure.exclude_steps` of an attempt; outside every window."""
    gpu_uuid: str | None = None


class Evaluation(Record, tag="evaluation"):
    """An evaluation on rows that are never trained on.

    Of ranks that train together rank 0 tells it for all; of ranks that train separately each tells its own.
    """

    attempt: Attempt
    rank: Rank
    step: Count
    """After which step."""
    ended_at: UnixTime
    duration_s: Seconds | None = None
    label_tokens: Count | None = None
    """Positions that the loss is taken over, of all ranks that train together."""
    loss: Number | None = None
    """Mean over these; absent where it is no finite number."""


class PhaseChange(Record, tag="phase"):
    """What a rank is busy with, outside its steps: loading, tokenizing, compiling, waiting (for the other ranks), training,
    evaluating, saving, finished."""

    at: UnixTime
    attempt: Attempt
    rank: Rank
    name: str
    detail: str | None = None


class LinesLost(Record, tag="lines_lost"):
    """Journal lines that could not be kept while the disk refused them."""

    at: UnixTime
    lines: Count
    rank: Rank | None = None
    steps: Count = 0
    """How many of them were steps."""
    last_step: Count | None = None
    """The last step among them."""


class GpuSample(Record, tag="gpu"):
    """One GPU at a moment. Slow readings (energy, temperature, limit) are on one line a second only."""

    sampled_at: UnixTime
    gpu_uuid: str
    power_w: Watts | None = None
    """Instant power; the card's default reading where it has no instant one."""
    power_average_w: Watts | None = None
    """The driver's own average over 1 s."""
    energy_j: Joules | None = None
    """The card's energy counter since the driver was loaded."""
    memory_used_bytes: Bytes | None = None
    utilization_pct: Percent | None = None
    temperature_c: Celsius | None = None
    sm_clock_mhz: Megahertz | None = None
    memory_clock_mhz: Megahertz | None = None
    event_reasons: Mask | None = None
    """Why the clocks are not higher: the sum of `clock_reasons.ClockReason`s, 0 for none."""
    power_limit_w: Watts | None = None


class HostSample(Record, tag="host"):
    """The host at a moment."""

    sampled_at: UnixTime
    host: str
    cpu_pct: Percent | None = None
    """Of all cores together: 100 is every core busy."""
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    workers_cpu_pct: Percent | None = None
    """Of one core, summed over the run's processes: 200 is two cores busy."""
    workers_rss_bytes: Bytes | None = None
    disk_free_bytes: Bytes | None = None
    package_energy_j: Joules | None = None
    """RAPL's counter summed over CPU packages, unwrapped, where it can be read."""


class Event(Record, tag="event"):
    """Something that happened to a run, for people: started, stopped, a rank lost, telemetry stale, a restart."""

    at: UnixTime
    kind: AnyKind
    """Who writes an event chooses one of `EventKind`, or mypy refuses it; who reads one keeps whatever stands there."""
    severity: Severity = "info"
    message: str = ""
    rank: Rank | None = None
    detail: dict[str, object] | None = None


RankLine = RankStarted | Step | Evaluation | PhaseChange | LinesLost
HostLine = GpuSample | HostSample | LinesLost
AnyLine = RankStarted | Step | Evaluation | PhaseChange | LinesLost | GpuSample | HostSample | Event


class ExitRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How a rank ended, written by the rank itself to `logs/attempt_N/rank-R.exit.json`.

    Absent after a death by a signal that cannot be handled.
    """

    rank: int
    attempt: int
    at: float
    status: Literal["completed", "stopped", "failed"]
    step: int = 0
    signal: int | None = None
    """The signal that ended it, with status `stopped`."""
    steps_made: int | None = None
    """How many steps it made in this attempt; None from an older lorawatch."""
    unwritten: int = 0
    """Journal lines that the disk did not take until the end."""
    failure: Failure | None = None
    exception: str | None = None
    """Type and message of the exception, one line."""
    traceback: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    """What lorawatch's exit status should be where the rank found bad input (2) or a missing model (3)."""
