"""What a journal line says: one struct a kind of line, tagged by its key `t`.

Lines are flat JSON objects whose keys are the history's column names, so that the history can read them without a
translation table. Times are unix seconds (UTC). A reading that could not be had is absent from the line and None here,
never 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NewType

import msgspec

from lorawatch.run.line import (
    Amount,
    Attempt,
    Bytes,
    Count,
    Number,
    Rank,
    Seconds,
    UnixTime,
    WorldSize,
)
from lorawatch.run.line import Record as Record
from lorawatch.run.metrics import GpuSample as GpuSample
from lorawatch.run.metrics import HostSample as HostSample
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

NOT_IN_HISTORY = frozenset({"process"})
"""Fields of lines that the history has no column for: they concern the recorder alone."""


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

    Of ranks that train together rank 0 writes it for all; of ranks that train separately each writes its own.
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


class Event(Record, tag="event"):
    """Something that happened to a run, for people: started, stopped, a rank lost, telemetry stale, a restart."""

    at: UnixTime
    kind: AnyKind
    """Who writes an event chooses one of `EventKind`, or mypy refuses it; who reads one keeps whatever stands there."""
    severity: Severity = "info"
    message: str = ""
    rank: Rank | None = None
    detail: dict[str, object] | None = None


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
