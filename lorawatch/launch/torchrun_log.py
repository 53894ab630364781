"""What torchrun's log, or a program's, says of an end. Pure: text in, facts out.

torchrun's own exit status is 1 for nearly everything, and its error file may blame a rank that only lost its peer; its log
says how each rank ended, and that torchrun itself got a signal.
"""

from __future__ import annotations

import re
import signal

# torch/distributed/elastic/multiprocessing: errors/__init__.py (a failed rank) and api.py (a signal to the agent).
_RANK_EXIT = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: (\d+)\)")
_FIRST_EXIT = re.compile(r"failed \(exitcode: -?\d+\) local_rank: \d+ \(pid: (\d+)\)")
_AGENT_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
_OOM_TEXT = re.compile(r"OutOfMemoryError|CUDA out of memory")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.M)
_SUMMARY = "ChildFailedError"
_LONGEST = 500


def agent_signal(log: str) -> int | None:
    """The signal that torchrun itself got; None where its log names none."""
    numbers = _AGENT_SIGNAL.findall(log)
    return int(numbers[-1]) if numbers else None


def rank_ends(log: str) -> tuple[tuple[int, int], ...]:
    """How the ranks ended, as torchrun lists them: rank and status, negative for a signal.

    What came first is first: another signal before the SIGTERM with which torchrun ends the siblings, of two alike the one
    that torchrun saw end first.
    """
    first = {int(pid) for pid in _FIRST_EXIT.findall(log)}
    ends = {int(rank): (int(code), int(pid)) for rank, code, pid in _RANK_EXIT.findall(log)}
    order = sorted(ends.items(), key=lambda e: (e[1][0] >= 0, e[1][0] == -signal.SIGTERM, e[1][1] not in first, e[0]))
    return tuple((rank, code) for rank, (code, _) in order)


def last_exception(log: str, *, of_a_rank: bool = False) -> str | None:
    """The last line that an exception ends a traceback with; None where there is none.

    Args:
        of_a_rank: Not the one with which torchrun sums up that a rank failed.
    """
    lines = [line for line in _EXCEPTION.findall(log) if not (of_a_rank and _SUMMARY in line.split(":")[0])]
    return lines[-1][:_LONGEST] if lines else None


def ran_out_of_gpu_memory(log: str) -> bool:
    """Whether the last word is that a GPU's memory was full. A program that tries a smaller batch by itself has such lines in
    its log too, and then another exception after them, or none where C++ aborts."""
    return bool(_OOM_TEXT.search(last_exception(log) or log))
