"""How a run ended, judged from what its ranks left behind. Pure: evidence in, verdict out.

The ranks' own exit records decide; torchrun's log says how a rank without one ended, and that torchrun itself got a signal.
torchrun's own exit status is 1 for nearly everything, and its error file may blame a rank that only lost its peer.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lorawatch.run.records import ExitRecord, Failure
from lorawatch.text.numbers import rank_words

# What a rank says when it is a peer that died, not itself.
_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket|peer|DistNetworkError|remote process|watchdog|timed? ?out",
    re.I,
)
_COLLECTIVE = re.compile(r"c10d|distributed|gloo|nccl|process ?group|Dist\w*Error|all_?reduce|barrier", re.I)
# torch/distributed/elastic/multiprocessing: errors/__init__.py (a failed rank) and api.py (a signal to the agent).
_RANK_EXIT = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: (\d+)\)")
_FIRST_EXIT = re.compile(r"failed \(exitcode: -?\d+\) local_rank: \d+ \(pid: (\d+)\)")
_AGENT_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
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
        not_saved: Why the stop saved nothing, or None.
        oom_kills: Processes that the kernel killed for want of memory during the run.
        hang: Why the recorder ended the run as hung, or None.
        gpu_lost: UUIDs of GPUs that the driver lost.
        lines_lost: Journal lines that were lost, as the journals say; the exit records may know of others.
        step: The last step of any rank, as the journals say.
    """

    exit_code: int | None
    records: Sequence[ExitRecord] = ()
    world_size: int = 0
    own_command: bool = False
    log_tail: str = ""
    stop_requested: Literal["stop", "kill"] | None = None
    not_saved: str | None = None
    oom_kills: int = 0
    hang: str | None = None
    gpu_lost: Sequence[str] = field(default=())
    lines_lost: int = 0
    step: int = 0


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
        verdict = Verdict("failed", "hang", evidence.hang, 1)
    elif evidence.stop_requested == "kill":
        lost = (
            ""
            if evidence.own_command or not evidence.step
            else "; the steps since the last save are not in the adapter"
        )
        verdict = Verdict("stopped", message=f"ended at once{lost}")
    else:
        verdict = _judge_command(evidence) if evidence.own_command else _judge_recipe(evidence)
    if lost := _not_recorded(evidence):
        verdict = replace(verdict, message="\n".join(filter(None, (verdict.message, lost))))
    return verdict


def tells_an_end(log: str) -> bool:
    """Whether torchrun's log says how the ranks, or torchrun itself, ended."""
    return bool(_RANK_EXIT.search(log) or _AGENT_SIGNAL.search(log))


def cause(records: Iterable[ExitRecord]) -> ExitRecord | None:
    """The record of the rank that ended the others: the first that failed by itself or got a signal; None where each only
    lost its peer. torchrun ends the siblings of whoever ended first by a signal of its own."""
    candidates = (r for r in records if r.signal is not None or (r.status == "failed" and not _lost_its_peer(r)))
    return min(candidates, key=lambda r: r.at, default=None)


def _not_recorded(evidence: Evidence) -> str:
    """How many of their lines the ranks could not write, in words; empty where the disk took all."""
    lost = max(sum(r.unwritten for r in evidence.records), evidence.lines_lost)
    return f"{lost:,} lines of its ranks are not recorded: the disk took no more" if lost else ""


def _judge_recipe(evidence: Evidence) -> Verdict:
    records = evidence.records
    if records and len(records) == max(evidence.world_size, 1):
        if all(r.status == "completed" for r in records):
            return Verdict("completed")
        if evidence.stop_requested and all(r.status in ("stopped", "completed") for r in records):
            return _stopped(evidence)
    first = cause(records)
    if first is not None and first.status == "failed":
        return _from_record(first)
    if evidence.gpu_lost:
        return Verdict("failed", "gpu_lost", f"the driver lost {', '.join(evidence.gpu_lost)}", 1)
    if evidence.stop_requested:
        return Verdict("stopped", message=_not_saved(evidence))
    return (
        _agent_ended(evidence)
        or _silent_rank(evidence)
        or (_signal(f"rank {first.rank} at step {first.step}", first.signal) if first is not None else None)
        or _without_cause(evidence)
    )


def _stopped(evidence: Evidence) -> Verdict:
    steps = sorted({r.step for r in evidence.records})
    if evidence.not_saved:
        return Verdict("stopped", message=_not_saved(evidence))
    if steps == [0]:
        return Verdict("stopped", message="stopped before the first step")
    if all(r.signal is not None for r in evidence.records):
        return Verdict("stopped", message=_not_saved(evidence))
    # ranks that train separately stop each at its own next step
    where = f"together at step {steps[0]}" if len(steps) == 1 else f"at steps {steps[0]} to {steps[-1]}"
    return Verdict("stopped", message=f"stopped {where}")


def _not_saved(evidence: Evidence) -> str:
    stepped = evidence.step or any(r.step for r in evidence.records)
    if not stepped and evidence.not_saved is None and not evidence.own_command:
        return "stopped before the first step"
    return f"ended while stopping, and nothing was saved{f': {evidence.not_saved}' if evidence.not_saved else ''}"


def _lost_its_peer(record: ExitRecord) -> bool:
    """Whether the rank only reports that another one has gone."""
    if record.failure == "nccl_timeout":
        return True
    if record.failure != "python_exception" or record.exit_code is not None:
        return False
    text = record.exception or ""
    return bool(_PEER_LOST.search(text) and _COLLECTIVE.search(f"{text} {record.traceback}"))


def _from_record(record: ExitRecord) -> Verdict:
    message = record.exception or record.failure or "failed"
    if record.exit_code is None:
        message = f"rank {record.rank} at step {record.step}: {message}"
    else:  # bad input is the run's fault, not a rank's, and its message is for people
        message = re.sub(r"^\w+: ", "", message)
    if record.hint:
        message += f"\n{record.hint}"
    return Verdict("failed", record.failure or "python_exception", message, record.exit_code or 1)


def _agent_ended(evidence: Evidence) -> Verdict | None:
    """The verdict where torchrun's agent itself was ended by a signal, which its ranks only followed."""
    if evidence.exit_code is not None and evidence.exit_code < 0:
        return _signal("torchrun's agent", -evidence.exit_code, evidence.oom_kills)
    signals = _AGENT_SIGNAL.findall(evidence.log_tail)
    return _signal("torchrun's agent", int(signals[-1])) if signals else None


def _silent_rank(evidence: Evidence) -> Verdict | None:
    """The verdict where a rank ended without a record, by what torchrun says of its end."""
    silent = set(range(evidence.world_size)) - {r.rank for r in evidence.records}
    for rank, code in _rank_ends(evidence.log_tail):
        if rank not in silent:
            continue
        if code < 0:
            return _signal(f"rank {rank}", -code, evidence.oom_kills)
        cause_text = _last_exception(evidence.log_tail, skip="ChildFailedError")
        words = f"rank {rank} exited with status {code} before it could say why" + (
            f": {cause_text}" if cause_text else ""
        )
        return Verdict("failed", "nonzero_exit", words, 1)
    if not silent or evidence.exit_code == 0:
        return None
    if evidence.oom_kills:
        return _signal(_were(silent), signal.SIGKILL, evidence.oom_kills)
    if evidence.exit_code is not None and len(silent) == evidence.world_size:  # torchrun never came to its ranks
        cause_text = _last_exception(evidence.log_tail)
        words = f"torchrun ended with status {evidence.exit_code}" + (f": {cause_text}" if cause_text else "")
        return Verdict("failed", "nonzero_exit", words, 1)
    return Verdict("failed", "signal", f"{_were(silent)} ended by a signal, or without a word", 1)


def _rank_ends(log: str) -> list[tuple[int, int]]:
    """How the ranks ended, as torchrun lists them: rank and status, negative for a signal. What came first is first: another
    signal before the SIGTERM with which torchrun ends the siblings, of two alike the one that torchrun saw end first."""
    first = {int(pid) for pid in _FIRST_EXIT.findall(log)}
    ends = {int(rank): (int(code), int(pid)) for rank, code, pid in _RANK_EXIT.findall(log)}
    order = sorted(ends.items(), key=lambda e: (e[1][0] >= 0, e[1][0] == -signal.SIGTERM, e[1][1] not in first, e[0]))
    return [(rank, code) for rank, (code, _) in order]


def _without_cause(evidence: Evidence) -> Verdict:
    failed = sorted((r for r in evidence.records if r.status == "failed"), key=lambda r: r.at)
    if failed:
        return _from_record(failed[0])
    if evidence.exit_code == 0:
        missing = sorted(set(range(evidence.world_size)) - {r.rank for r in evidence.records})
        words = f"how {rank_words(missing)} ended is not written down"
        return Verdict("completed", message=words if missing else None)
    return Verdict("failed", "python_exception", _last_exception(evidence.log_tail) or _exited(evidence.exit_code), 1)


def _signal(who: str, number: int | None, oom_kills: int = 0) -> Verdict:
    if oom_kills and number == signal.SIGKILL:
        return Verdict(
            "failed",
            "host_oom",
            f"{who} was ended by the kernel for want of memory\nuse fewer CPU ranks, or a machine with more RAM",
            1,
        )
    return Verdict("failed", "signal", f"{who} was ended by {_signal_name(number)}", 1)


def _signal_name(number: int | None) -> str:
    try:
        return f"signal {number} ({signal.Signals(number or 0).name})"
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _were(ranks: Iterable[int]) -> str:
    words = rank_words(sorted(ranks))
    return f"{words} {'were' if words.startswith('ranks') else 'was'}"


def _judge_command(evidence: Evidence) -> Verdict:
    code = evidence.exit_code
    if evidence.stop_requested:
        words = f"; nothing was saved: {evidence.not_saved}" if evidence.not_saved else ""
        return Verdict("stopped", message=f"stopped on request{words}")
    if code == 0 or (code is None and evidence.records and all(r.status == "completed" for r in evidence.records)):
        return Verdict("completed")
    if code is None:
        return Verdict(
            "lost", message="the recorder that started the command is gone: its exit status is not known", exit_code=1
        )
    # A program that tries a smaller batch by itself has such lines in its log too: the last word counts. C++ aborts with it.
    exception = _last_exception(evidence.log_tail)
    if code in (-signal.SIGABRT, *range(1, 256)) and _OOM_TEXT.search(exception or evidence.log_tail):
        words = f"{exception or 'CUDA out of memory'}\na smaller batch or shorter sequences need less"
        return Verdict("failed", "cuda_oom", words, 1)
    if code < 0:
        return _signal("the command", -code, evidence.oom_kills)
    return _torchrun_of_a_user(evidence) or _from_status(evidence, code)


def _torchrun_of_a_user(evidence: Evidence) -> Verdict | None:
    """What a torchrun inside an own command says of a signal, to itself or to a rank."""
    signals = _AGENT_SIGNAL.findall(evidence.log_tail)
    if signals:
        return _signal("the command's torchrun", int(signals[-1]))
    ends = [(rank, code) for rank, code in _rank_ends(evidence.log_tail) if code < 0]
    return _signal(f"rank {ends[0][0]}", -ends[0][1], evidence.oom_kills) if ends else None


def _from_status(evidence: Evidence, code: int) -> Verdict:
    if exception := _last_exception(evidence.log_tail):
        return Verdict("failed", "python_exception", exception, 1)
    return Verdict("failed", "nonzero_exit", _exited(code), 1)


def _exited(code: int | None) -> str:
    return "it ended; its exit status is not known" if code is None else f"it exited with status {code}"


def _last_exception(log: str, skip: str = " ") -> str | None:
    exceptions = [line for line in _EXCEPTION.findall(log) if skip not in line.split(":")[0]]
    return exceptions[-1][:500] if exceptions else None
