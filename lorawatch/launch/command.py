"""The user's own command as a run's launcher: whatever it starts, and however many ranks that has."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lorawatch.errors import UsageError
from lorawatch.launch import torchrun_log
from lorawatch.launch.launcher import Attempt
from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir
from lorawatch.run.verdict import LauncherEnd

LOG_NAME = "command.log"


class OwnCommand:
    """Starts the user's command.

    Args:
        run: The run's directory.
        command: As it was typed, which is in no file, since secrets may stand in it; None where this process was not given
            it, and can neither start it nor say more of its end than its log does.
    """

    log_name = LOG_NAME
    world_size = None
    local_ranks = True
    recorded_command = None  # `prepare_command` has written it, masked

    def __init__(self, run: RunDir, command: Sequence[str] | None = None) -> None:
        self._run, self._command = run, command

    def command(self) -> list[str]:
        """The command as it was typed.

        Raises:
            UsageError: It is not known here.
        """
        if self._command is None:
            raise UsageError(
                f"the command of run {self._run.run_id} was given to another recorder and is in no file",
                hint="start it again: lorawatch --record -- CMD",
            )
        return list(self._command)

    def environment(self, attempt: Attempt) -> dict[str, str]:
        """The user's, with the run's directory, by which a callback in the command finds its journal."""
        run_dir = {RUN_DIR_VARIABLE: str(self._run.root), "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **run_dir, **attempt.variables}

    def end(self, exit_code: int | None, log: str) -> LauncherEnd:
        """The command's end; a torchrun inside it says more in its log."""
        return LauncherEnd(
            name="the command",
            agent="the command's torchrun",
            own_command=True,
            exit_code=exit_code,
            agent_signal=torchrun_log.agent_signal(log),
            rank_ends=torchrun_log.rank_ends(log),
            exception=torchrun_log.last_exception(log),
            gpu_memory_full=torchrun_log.ran_out_of_gpu_memory(log),
        )
