"""How a run ended, judged from what its ranks left behind. Pure: evidence in, verdict out.

The ranks' own exit records decide; what its launcher says of the end counts where a rank has none. What may be the case stands
in three tables of rules, in the order in which they go before one another: the first that applies decides.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from lorawatch.run.records import ExitRecord, Failure
from lorawatch.text.numbers import rank_words

# What a rank says when it is a peer that died, not itself.
_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket|peer|DistNetworkError|remote process|watchdog|timed? ?out",
    re.I,
)
_COLLECTIVE = re.compile(r"c10d|distributed|gloo|nccl|process ?group|Dist\w*Error|all_?reduce|barrier", re.I)


@dataclass(frozen=True)
class LauncherEnd:
    """How a run's launcher ended, as its status and its log say; each launcher of `lorawatch.launch` says it of its own.

    Attributes:
        name: The launcher, for people: `torchrun`, `the command`.
        agent: What in it looks after the ranks: `torchrun's agent`.
        own_command: It is the user's command, whose ranks may report nothing.
        exit_code: Its status; negative for a signal; None where no process could wait for it.
        agent_signal: The signal that its log says it got; None where it names none.
        rank_ends: How ranks ended, the first cause first: rank and status, negative for a signal.
        exception: The last exception in its log.
        rank_exception: The last one that is no summary of its own.
        gpu_memory_full: Its log's last word is that a GPU's memory was full.
    """

    name: str = "torchrun"
    agent: str = "torchrun's agent"
    own_command: bool = False
    exit_code: int | None = None
    agent_signal: int | None = None
    rank_ends: Sequence[tuple[int, int]] = ()
    exception: str | None = None
    rank_exception: str | None = None
    gpu_memory_full: bool = False

    @property
    def tells(self) -> bool:
        """Whether the log says how the ranks, or the launcher itself, ended."""
        return bool(self.rank_ends) or self.agent_signal is not None


@dataclass(frozen=True)
class Evidence:
    """What is known when no process of a run is left.

    Attributes:
        launcher: How the launcher ended.
        records: Exit records of the last attempt.
        world_size: Ranks of the last attempt; 0 if it is not known.
        stop_requested: A stop had been asked for: `stop` (together, saved) or `kill` (at once).
        not_saved: Why the stop saved nothing, or None.
        oom_kills: Processes that the kernel killed for want of memory during the run.
        hang: Why the recorder ended the run as hung, or None.
        gpu_lost: UUIDs of GPUs that the driver lost.
        lines_lost: Journal lines that were lost, as the journals say; the exit records may know of others.
        step: The last step of any rank, as the journals say.
    """

    launcher: LauncherEnd
    records: Sequence[ExitRecord] = ()
    world_size: int = 0
    stop_requested: Literal["stop", "kill"] | None = None
    not_saved: str | None = None
    oom_kills: int = 0
    hang: str | None = None
    gpu_lost: Sequence[str] = field(default=())
    lines_lost: int = 0
    step: int = 0

    @property
    def exit_code(self) -> int | None:
        """The launcher's status."""
        return self.launcher.exit_code

    @property
    def all_reported(self) -> bool:
        """Whether every rank left an exit record."""
        return bool(self.records) and len(self.records) == max(self.world_size, 1)

    @property
    def silent(self) -> set[int]:
        """The ranks without an exit record."""
        return set(range(self.world_size)) - {r.rank for r in self.records}

    @property
    def silent_end(self) -> tuple[int, int] | None:
        """Of the ranks without a record the first whose end the launcher names: rank and status."""
        return next(((rank, code) for rank, code in self.launcher.rank_ends if rank in self.silent), None)

    @property
    def cause(self) -> ExitRecord | None:
        """The record of the rank that ended the others."""
        return cause(self.records)

    @property
    def failed(self) -> list[ExitRecord]:
        """Records of ranks that failed, the earliest first."""
        return sorted((r for r in self.records if r.status == "failed"), key=lambda r: r.at)


@dataclass(frozen=True)
class Verdict:
    """A run's end: its state, why it failed, and the exit status that says so."""

    state: Literal["completed", "stopped", "failed", "lost"]
    failure: Failure | None = None
    message: str | None = None
    exit_code: int = 0


class Rule(NamedTuple):
    """What may be the case, and the verdict where it is."""

    name: str
    applies: Callable[[Evidence], bool]
    outcome: Callable[[Evidence], Verdict]


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run that has no process left."""
    verdict = deciding_rule(evidence).outcome(evidence)
    if lost := _not_recorded(evidence):
        verdict = replace(verdict, message="\n".join(filter(None, (verdict.message, lost))))
    return verdict


def deciding_rule(evidence: Evidence) -> Rule:
    """The first rule that applies; the last of each table always does."""
    return next(rule for rule in rules(evidence.launcher.own_command) if rule.applies(evidence))


def rules(own_command: bool) -> tuple[Rule, ...]:
    """All rules for a user's command, or for a recipe's ranks, in their order."""
    return (*RECORDER_RULES, *(COMMAND_RULES if own_command else RECIPE_RULES))


def cause(records: Iterable[ExitRecord]) -> ExitRecord | None:
    """The record of the rank that ended the others: the first that failed by itself or got a signal; None where each only
    lost its peer. torchrun ends the siblings of whoever ended first by a signal of its own."""
    candidates = (r for r in records if r.signal is not None or (r.status == "failed" and not _lost_its_peer(r)))
    return min(candidates, key=lambda r: r.at, default=None)


# --- the outcomes


def _hung(e: Evidence) -> Verdict:
    return Verdict("failed", "hang", e.hang, 1)


def _ended_at_once(e: Evidence) -> Verdict:
    unsaved = "" if e.launcher.own_command or not e.step else "; the steps since the last save are not in the adapter"
    return Verdict("stopped", message=f"ended at once{unsaved}")


def _completed(e: Evidence) -> Verdict:
    missing = [] if e.launcher.own_command else sorted(e.silent)
    return Verdict("completed", message=f"how {rank_words(missing)} ended is not written down" if missing else None)


def _stopped_together(e: Evidence) -> Verdict:
    steps = sorted({r.step for r in e.records})
    if e.not_saved:
        return _stopped_unsaved(e)
    if steps == [0]:
        return Verdict("stopped", message="stopped before the first step")
    if all(r.signal is not None for r in e.records):
        return _stopped_unsaved(e)
    # ranks that train separately stop each at its own next step
    where = f"together at step {steps[0]}" if len(steps) == 1 else f"at steps {steps[0]} to {steps[-1]}"
    return Verdict("stopped", message=f"stopped {where}")


def _stopped_unsaved(e: Evidence) -> Verdict:
    if not (e.step or any(r.step for r in e.records)) and e.not_saved is None:
        return Verdict("stopped", message="stopped before the first step")
    why = f": {e.not_saved}" if e.not_saved else ""
    return Verdict("stopped", message=f"ended while stopping, and nothing was saved{why}")


def _command_stopped(e: Evidence) -> Verdict:
    unsaved = f"; nothing was saved: {e.not_saved}" if e.not_saved else ""
    return Verdict("stopped", message=f"stopped on request{unsaved}")


def _of_record(record: ExitRecord) -> Verdict:
    message = record.exception or record.failure or "failed"
    if record.exit_code is None:
        message = f"rank {record.rank} at step {record.step}: {message}"
    else:  # bad input is the run's fault, not a rank's, and its message is for people
        message = re.sub(r"^\w+: ", "", message)
    if record.hint:
        message += f"\n{record.hint}"
    return Verdict("failed", record.failure or "python_exception", message, record.exit_code or 1)


def _of_cause(e: Evidence) -> Verdict:
    assert e.cause is not None
    if e.cause.status == "failed":
        return _of_record(e.cause)
    return _of_signal(f"rank {e.cause.rank} at step {e.cause.step}", e.cause.signal)


def _gpu_lost(e: Evidence) -> Verdict:
    return Verdict("failed", "gpu_lost", f"the driver lost {', '.join(e.gpu_lost)}", 1)


def _launcher_signalled(e: Evidence) -> Verdict:
    who = e.launcher.name if e.launcher.own_command else e.launcher.agent
    return _of_signal(who, -(e.exit_code or 0), e.oom_kills)


def _agent_signalled(e: Evidence) -> Verdict:
    return _of_signal(e.launcher.agent, e.launcher.agent_signal)


def _silent_rank_ended(e: Evidence) -> Verdict:
    assert e.silent_end is not None
    rank, code = e.silent_end
    if code < 0:
        return _of_signal(f"rank {rank}", -code, e.oom_kills)
    why = f": {e.launcher.rank_exception}" if e.launcher.rank_exception else ""
    return Verdict("failed", "nonzero_exit", f"rank {rank} exited with status {code} before it could say why{why}", 1)


def _silent_ranks_out_of_memory(e: Evidence) -> Verdict:
    return _of_signal(_were(e.silent), signal.SIGKILL, e.oom_kills)


def _ranks_never_began(e: Evidence) -> Verdict:
    why = f": {e.launcher.exception}" if e.launcher.exception else ""
    return Verdict("failed", "nonzero_exit", f"{e.launcher.name} ended with status {e.exit_code}{why}", 1)


def _without_a_word(e: Evidence) -> Verdict:
    return Verdict("failed", "signal", f"{_were(e.silent)} ended by a signal, or without a word", 1)


def _of_status(e: Evidence) -> Verdict:
    failure: Failure = "nonzero_exit" if e.launcher.own_command and not e.launcher.exception else "python_exception"
    return Verdict("failed", failure, e.launcher.exception or _exited(e.exit_code), 1)


def _status_unknown(e: Evidence) -> Verdict:
    words = "the recorder that started the command is gone: its exit status is not known"
    return Verdict("lost", message=words, exit_code=1)


def _gpu_memory_full(e: Evidence) -> Verdict:
    words = f"{e.launcher.exception or 'CUDA out of memory'}\na smaller batch or shorter sequences need less"
    return Verdict("failed", "cuda_oom", words, 1)


def _command_rank_signalled(e: Evidence) -> Verdict:
    rank, code = next(end for end in e.launcher.rank_ends if end[1] < 0)
    return _of_signal(f"rank {rank}", -code, e.oom_kills)


# --- the rules


RECORDER_RULES = (
    Rule("the recorder ended it as hung", lambda e: e.hang is not None, _hung),
    Rule("it was ended at once on request", lambda e: e.stop_requested == "kill", _ended_at_once),
)
RECIPE_RULES = (
    Rule(
        "every rank completed",
        lambda e: e.all_reported and all(r.status == "completed" for r in e.records),
        lambda _: Verdict("completed"),
    ),
    Rule(
        "every rank followed a stop",
        lambda e: (
            e.all_reported
            and e.stop_requested is not None
            and all(r.status in ("stopped", "completed") for r in e.records)
        ),
        _stopped_together,
    ),
    Rule("a rank failed by itself", lambda e: e.cause is not None and e.cause.status == "failed", _of_cause),
    Rule("a GPU was lost", lambda e: bool(e.gpu_lost), _gpu_lost),
    Rule("a stop ended it", lambda e: e.stop_requested is not None, _stopped_unsaved),
    Rule("a signal ended the launcher", lambda e: (e.exit_code or 0) < 0, _launcher_signalled),
    Rule("the launcher says it got a signal", lambda e: e.launcher.agent_signal is not None, _agent_signalled),
    Rule("the launcher says how a silent rank ended", lambda e: e.silent_end is not None, _silent_rank_ended),
    Rule(
        "the kernel ended silent ranks",
        lambda e: bool(e.silent) and e.exit_code != 0 and e.oom_kills > 0,
        _silent_ranks_out_of_memory,
    ),
    Rule(
        "the launcher never came to its ranks",
        lambda e: len(e.silent) == e.world_size > 0 and e.exit_code not in (0, None),
        _ranks_never_began,
    ),
    Rule("ranks ended without a word", lambda e: bool(e.silent) and e.exit_code != 0, _without_a_word),
    Rule("a rank got a signal", lambda e: e.cause is not None, _of_cause),
    Rule("ranks lost one another", lambda e: bool(e.failed), lambda e: _of_record(e.failed[0])),
    Rule("the launcher ended well", lambda e: e.exit_code == 0, _completed),
    Rule("the launcher failed", lambda _: True, _of_status),
)
COMMAND_RULES = (
    Rule("a stop ended it", lambda e: e.stop_requested is not None, _command_stopped),
    Rule(
        "it ended well",
        lambda e: (
            e.exit_code == 0
            or (e.exit_code is None and bool(e.records) and all(r.status == "completed" for r in e.records))
        ),
        _completed,
    ),
    Rule("its status is not known", lambda e: e.exit_code is None, _status_unknown),
    Rule(
        "a GPU's memory was full",
        lambda e: e.launcher.gpu_memory_full and e.exit_code in (-signal.SIGABRT, *range(1, 256)),
        _gpu_memory_full,
    ),
    Rule("a signal ended it", lambda e: (e.exit_code or 0) < 0, _launcher_signalled),
    Rule("its torchrun got a signal", lambda e: e.launcher.agent_signal is not None, _agent_signalled),
    Rule(
        "its torchrun names a signal",
        lambda e: any(code < 0 for _, code in e.launcher.rank_ends),
        _command_rank_signalled,
    ),
    Rule("it failed", lambda _: True, _of_status),
)


# --- small things


def _lost_its_peer(record: ExitRecord) -> bool:
    """Whether the rank only reports that another one has gone."""
    if record.failure == "nccl_timeout":
        return True
    if record.failure != "python_exception" or record.exit_code is not None:
        return False
    text = record.exception or ""
    return bool(_PEER_LOST.search(text) and _COLLECTIVE.search(f"{text} {record.traceback}"))


def _not_recorded(evidence: Evidence) -> str:
    """How many of their lines the ranks could not write, in words; empty where the disk took all."""
    lost = max(sum(r.unwritten for r in evidence.records), evidence.lines_lost)
    return f"{lost:,} lines of its ranks are not recorded: the disk took no more" if lost else ""


def _of_signal(who: str, number: int | None, oom_kills: int = 0) -> Verdict:
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


def _exited(code: int | None) -> str:
    return "it ended; its exit status is not known" if code is None else f"it exited with status {code}"
