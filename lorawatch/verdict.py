"""How a run ended, judged from what its ranks left behind. Pure: evidence in, verdict out.

The ranks' own exit records decide. torchrun's agent exits with 1 for nearly everything, and its error file may blame a
rank that only lost its peer.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorawatch.records import ExitRecord, Failure

# What a rank says when it is a peer that died, not itself.
_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket|peer|DistNetworkError|remote process|watchdog|timed? ?out",
    re.I,
)
_COLLECTIVE = re.compile(r"c10d|distributed|gloo|nccl|process ?group|Dist\w*Error|all_?reduce|barrier", re.I)
_KILLED = re.compile(r"exitcode\s*:\s*-(\d+) \(pid: (\d+)\)|Signal (\d+) \((SIG\w+)\) received by PID (\d+)")
_OOM_TEXT = re.compile(r"OutOfMemoryError|CUDA out of memory")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.M)


@dataclass(frozen=True)
class Evidence:
    """What is known when no process of a run is left.

    Attributes:
        exit_code: The launcher's; negative for a signal; None where nobody could wait for it.
        records: Exit records of the last attempt.
        world_size: Ranks of the last attempt; 0 if it is not known.
        own_command: The launcher is the user's command rather than torchrun.
        log_tail: End of the launcher's output.
        stop_requested: A stop had been asked for: `stop` (together, saved) or `kill` (at once).
        oom_kills: Processes that the kernel killed for want of memory during the run.
        hang: Why the recorder ended the run as hung, or None.
        gpu_lost: UUIDs of GPUs that the driver lost.
    """

    exit_code: int | None
    records: Sequence[ExitRecord] = ()
    world_size: int = 0
    own_command: bool = False
    log_tail: str = ""
    stop_requested: Literal["stop", "kill"] | None = None
    oom_kills: int = 0
    hang: str | None = None
    gpu_lost: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Verdict:
    """A run's end: its state, why it failed, and the exit status that says so."""

    state: Literal["completed", "stopped", "failed", "lost"]
    failure: Failure | None = None
    message: str | None = None
    exit_code: int = 0


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run that has no process left."""
    if evidence.hang is not None:
        return Verdict("failed", "hang", evidence.hang, 1)
    if evidence.stop_requested == "kill":
        return Verdict("stopped", message="ended at once; the steps since the last save are not in the adapter")
    if evidence.own_command:
        return _judge_command(evidence)
    records = evidence.records
    if records and len(records) == max(evidence.world_size, 1):
        if all(r.status == "completed" for r in records):
            return Verdict("completed")
        if evidence.stop_requested and all(r.status in ("stopped", "completed") for r in records):
            steps = sorted({r.step for r in records})
            if steps == [0]:
                return Verdict("stopped", message="stopped before the first step")
            # ranks that train each for itself stop each at its own next step
            where = f"together at step {steps[0]}" if len(steps) == 1 else f"at steps {steps[0]} to {steps[-1]}"
            return Verdict("stopped", message=f"stopped {where}")
    failed = sorted((r for r in records if r.status == "failed"), key=lambda r: r.at)
    causes = [r for r in failed if not _lost_its_peer(r)]
    if causes:
        return _from_record(causes[0])
    if evidence.gpu_lost:
        return Verdict("failed", "gpu_lost", f"the driver lost {', '.join(evidence.gpu_lost)}", 1)
    silent = sorted(set(range(evidence.world_size)) - {r.rank for r in records})
    if silent or _signal(evidence) is not None:
        if evidence.stop_requested:
            return Verdict("stopped", message="ended while stopping; nothing was saved")
        return _from_signal(evidence, silent)
    if failed:
        return _from_record(failed[0])
    if evidence.stop_requested:
        return Verdict("stopped", message="stopped before the first step")
    if evidence.exit_code == 0:
        return Verdict("completed")
    return Verdict("failed", "python_exception", _last_exception(evidence.log_tail) or _exited(evidence.exit_code), 1)


def _lost_its_peer(record: ExitRecord) -> bool:
    """Whether the rank only reports that another one has gone."""
    if record.failure == "nccl_timeout":
        return True
    if record.failure != "python_exception" or record.exit_code is not None:
        return False
    said = record.exception or ""
    return bool(_PEER_LOST.search(said) and _COLLECTIVE.search(f"{said} {record.traceback}"))


def _from_record(record: ExitRecord) -> Verdict:
    message = record.exception or record.failure or "failed"
    if record.exit_code is None:
        message = f"rank {record.rank} at step {record.step}: {message}"
    else:  # bad input is the run's fault, not a rank's, and its message is for people
        message = re.sub(r"^\w+: ", "", message)
    if record.hint:
        message += f"\n{record.hint}"
    return Verdict("failed", record.failure or "python_exception", message, record.exit_code or 1)


def _signal(evidence: Evidence) -> int | None:
    """The signal that ended a rank or the launcher."""
    if evidence.exit_code is not None and evidence.exit_code < 0:
        return -evidence.exit_code
    numbers = [int(m[1] or m[3]) for m in _KILLED.finditer(evidence.log_tail)]
    # torchrun ends the siblings with SIGTERM after the first death
    return next((n for n in numbers if n != signal.SIGTERM), numbers[0] if numbers else None)


def _from_signal(evidence: Evidence, silent: Sequence[int]) -> Verdict:
    number = _signal(evidence)
    who = "torchrun's agent" if evidence.exit_code is not None and evidence.exit_code < 0 else _ranks(silent)
    if evidence.oom_kills and number in (signal.SIGKILL, None):
        return Verdict(
            "failed",
            "host_oom",
            f"{who}: the kernel ended it for want of memory\nuse fewer CPU ranks, or a machine with more RAM",
            1,
        )
    name = f"signal {number} ({signal.Signals(number).name})" if number else "a signal, or without a word"
    return Verdict("failed", "signal", f"{who} ended by {name}", 1)


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return "a rank was"
    return f"rank {ranks[0]} was" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} were"


def _judge_command(evidence: Evidence) -> Verdict:
    code = evidence.exit_code
    if evidence.stop_requested:
        return Verdict("stopped", message="stopped on request")
    if code == 0 or (code is None and evidence.records and all(r.status == "completed" for r in evidence.records)):
        return Verdict("completed")
    if code is None:
        return Verdict(
            "lost", message="the command ended while no recorder watched; its exit status is not known", exit_code=1
        )
    if _OOM_TEXT.search(evidence.log_tail):
        said = _last_exception(evidence.log_tail) or "CUDA out of memory"
        return Verdict("failed", "cuda_oom", f"{said}\na smaller batch or shorter sequences need less", 1)
    if code < 0:
        failure: Failure = "host_oom" if evidence.oom_kills and -code == signal.SIGKILL else "signal"
        return Verdict("failed", failure, f"the command was ended by signal {-code} ({signal.Signals(-code).name})", 1)
    if exception := _last_exception(evidence.log_tail):
        return Verdict("failed", "python_exception", exception, 1)
    return Verdict("failed", "nonzero_exit", _exited(code), 1)


def _exited(code: int | None) -> str:
    return "it ended; its exit status is not known" if code is None else f"it exited with status {code}"


def _last_exception(log: str) -> str | None:
    found = _EXCEPTION.findall(log)
    return found[-1][:500] if found else None
