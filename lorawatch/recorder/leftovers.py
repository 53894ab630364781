"""What is done with processes of a run that outlive its launcher."""

from __future__ import annotations

from collections.abc import Callable

from lorawatch.recorder.workers import Leftover, Workers
from lorawatch.run.records import EventKind, Severity
from lorawatch.system.processes import environment_of
from lorawatch.text.sanitize import clean

ENDED_BY_THEMSELVES_S = 2.0
_NAMED = 5


def settle(
    workers: Workers,
    *,
    own_command: bool,
    stopped: bool,
    say: Callable[[EventKind, str, Severity], None],
    tick: Callable[[], None],
) -> None:
    """After the launcher's end: wait a moment for what it started, then end it, or leave it alone and name it.

    What a recipe started is ended in any case. What an own command started is ended where the command failed, was ended by a
    signal or was stopped; where it ended well, what it left behind is there on purpose (a tmux, a ray, an ssh master).

    Args:
        own_command: The launcher is the user's command.
        stopped: A stop was asked for.
        say: Called for each event with its kind, message and severity.
        tick: Called meanwhile.
    """
    if workers.wait_gone(ENDED_BY_THEMSELVES_S, tick):
        return
    left = workers.leftovers()
    if own_command and not stopped and _ended_well(workers, left):
        say("left_running", f"the command has ended, but not what it started: {_named(left)} goes on", "info")
        return
    say("orphans", f"ending what outlived its launcher: {_named(left)}", "warning")
    if not workers.end_leftovers():
        still = workers.leftovers()
        say("orphans", f"cannot be ended: {_named(still)}; it may wait in the kernel for a disk or a driver", "error")


def _ended_well(workers: Workers, left: list[Leftover]) -> bool:
    if workers.exit_code is not None:
        return workers.exit_code == 0
    # An adopted command's status is not known. Ranks do not outlive a torchrun that ended well.
    return not any("RANK" in environment_of(item.process.pid) for item in left)


def _named(left: list[Leftover]) -> str:
    words = ", ".join(clean(str(item)) for item in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return f"process{'es' if len(left) > 1 else ''} {words}{more}"
