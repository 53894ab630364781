"""What a journal line says: one struct a kind of line, tagged by its key `t`.

Lines are flat JSON objects whose keys are the history's column names, so that the history can read them without a
translation table. Times are unix seconds (UTC). A reading that could not be had is absent from the line and None here,
never 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lorawatch.processes import ProcessId

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


NOT_IN_HISTORY = frozenset({"process"})
"""Fields of lines that the history has no column for: they concern the recorder alone."""


class Record(msgspec.Struct, omit_defaults=True, tag_field="t", kw_only=True):
    """Base of all journal lines."""


class RankStarted(Record, tag="rank_started"):
    """A rank's first line of an attempt: who it is and what it trains.

    The model's facts are the same on every rank; `flops_per_token` follows DESIGN's LoRA formula.
    """

    at: float
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    host: str
    pid: int
    """As the rank itself counts: in a container another number than the host's."""
    device: str
    """`cuda` or `cpu`."""
    gpu_uuid: str | None = None
    """NVML's UUID, `GPU-…`, whatever CUDA_VISIBLE_DEVICES says."""
    gpu_name: str | None = None
    torch_version: str | None = None
    steps_total: int | None = None
    parameters: int | None = None
    lora_parameters: int | None = None
    flops_per_token: float | None = None
    dtype: str | None = None
    """Base weights' number format, as torch names it: `bfloat16`."""
    process: ProcessId | None = None
    """Which process it is, for the recorder; not in the history."""


class Step(Record, tag="step"):
    """One rank's optimizer step.

    Its wall time runs from the end of the step before, or from the end of an evaluation or a checkpoint in between, so
    that the durations of a window add up to its wall time.
    """

    attempt: int
    rank: int
    step: int
    """Counts from 1, as the Trainer's global_step after the step."""
    ended_at: float
    duration_s: float
    tokens: int | None = None
    """Positions computed on this rank, padding included."""
    nonpad_tokens: int | None = None
    label_tokens: int | None = None
    """Positions that the loss is taken over."""
    loss: float | None = None
    """Mean over this rank's label tokens."""
    grad_norm: float | None = None
    learning_rate: float | None = None
    data_wait_s: float | None = None
    memory_allocated_bytes: int | None = None
    """Peak of torch's allocations on the rank's device since the attempt began."""
    memory_reserved_bytes: int | None = None
    phase: Phase = "train"
    """`warmup`: the first `measure.exclude_steps` of an attempt; outside every window."""
    gpu_uuid: str | None = None


class Evaluation(Record, tag="evaluation"):
    """An evaluation on rows that are never trained on.

    Of ranks that train together rank 0 tells it for all; of ranks that train separately each tells its own.
    """

    attempt: int
    rank: int
    step: int
    """After which step."""
    ended_at: float
    duration_s: float | None = None
    label_tokens: int | None = None
    """Positions that the loss is taken over, of all ranks that train together."""
    loss: float | None = None
    """Mean over these; absent where it is no finite number."""


class PhaseChange(Record, tag="phase"):
    """What a rank is busy with, outside its steps: loading, tokenizing, compiling, waiting (for the other ranks), training,
    evaluating, saving, finished."""

    at: float
    attempt: int
    rank: int
    name: str
    detail: str | None = None


class LinesLost(Record, tag="lines_lost"):
    """Journal lines that could not be kept while the disk refused them."""

    at: float
    lines: int
    rank: int | None = None
    steps: int = 0
    """How many of them were steps."""
    last_step: int | None = None
    """The last step among them."""


class GpuSample(Record, tag="gpu"):
    """One GPU at a moment. Slow readings (energy, temperature, limit) are on one line a second only."""

    sampled_at: float
    gpu_uuid: str
    power_w: float | None = None
    """Instant power; the card's default reading where it has no instant one."""
    power_average_w: float | None = None
    """The driver's own average over 1 s."""
    energy_j: float | None = None
    """The card's energy counter since the driver was loaded."""
    memory_used_bytes: int | None = None
    utilization_pct: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    event_reasons: int | None = None
    """NVML's clock event reasons, a bit mask: why the clocks are not higher."""
    power_limit_w: float | None = None


class HostSample(Record, tag="host"):
    """The host at a moment."""

    sampled_at: float
    host: str
    cpu_pct: float | None = None
    """Of all cores together: 100 is every core busy."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    workers_cpu_pct: float | None = None
    """Of one core, summed over the run's processes: 200 is two cores busy."""
    workers_rss_bytes: int | None = None
    disk_free_bytes: int | None = None
    package_energy_j: float | None = None
    """RAPL's counter summed over CPU packages, unwrapped, where it can be read."""


class Event(Record, tag="event"):
    """Something that happened to a run, for people: started, stopped, a rank lost, telemetry stale, a restart."""

    at: float
    kind: str
    severity: Severity = "info"
    message: str = ""
    rank: int | None = None
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
