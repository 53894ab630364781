"""What a recorder asks of whatever starts a run's ranks.

A launcher is one process of this host, started by `start` in a session of its own: torchrun's agent, the user's command, or a
scheduler's client (`srun`) whose ranks run on other hosts. What the ranks do is read from their journals and exit records in the
run's directory in any case; a launcher adds what only it knows: what to start, and what its own end says of them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorawatch.errors import MissingDependency
from lorawatch.run.verdict import LauncherEnd
from lorawatch.system.permissions import users_umask
from lorawatch.text.masking import mask_text


@dataclass(frozen=True)
class Attempt:
    """What an attempt begins with.

    Attributes:
        number: How many attempts the run had before.
        resumed_at: The step of the checkpoint that it goes on from; None: from the beginning.
        variables: More for the ranks' environment.
    """

    number: int = 0
    resumed_at: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


class Launcher(Protocol):
    """How the ranks of one run are started, and what their launcher's end means."""

    @property
    def log_name(self) -> str:
        """The file in the run's `logs/` that takes the launcher's output."""

    @property
    def world_size(self) -> int | None:
        """How many ranks it starts, over all hosts; None where only they know."""

    @property
    def local_ranks(self) -> bool:
        """Whether its ranks are processes of this host and descend from it: a rank that does not is then worth a word."""

    @property
    def recorded_command(self) -> Sequence[str] | None:
        """Its command line as `run.json` keeps it; None where that has it already."""

    def command(self) -> list[str]:
        """Its command line.

        Raises:
            UsageError: It is not known here; says what to do.
            MissingDependency: What it needs is not installed.
        """

    def environment(self, attempt: Attempt) -> dict[str, str]:
        """Its whole environment, which the ranks inherit."""

    def end(self, exit_code: int | None, log: str) -> LauncherEnd:
        """What its end says, for the verdict on the run.

        Args:
            exit_code: Its status; negative for a signal; None where no process could wait for it.
            log: The end of its output.
        """


def start(launcher: Launcher, attempt: Attempt, log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a launcher in a session of its own, its output in a file.

    A session of its own keeps a Ctrl-C in the terminal from reaching the ranks before the recorder has asked them to
    stop together, and lets them outlive the recorder.

    Raises:
        UsageError: Its command is not known here.
        MissingDependency: The program is not there or may not be executed.
        OSError: It cannot be started for another reason.
    """
    command = launcher.command()
    with open(log, "ab") as output:
        try:
            return subprocess.Popen(
                command,
                env=launcher.environment(attempt),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=users_umask(),
            )
        except FileNotFoundError:
            raise MissingDependency(
                f"there is no program {mask_text(command[0])!r}", hint="give its path, or put it on PATH"
            ) from None
        except PermissionError:
            program = mask_text(command[0])
            raise MissingDependency(f"{program!r} may not be executed", hint=f"chmod +x {program}") from None
