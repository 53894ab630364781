"""How a run's launcher is started: the user's own command, or torchrun with the recipe's ranks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorawatch.errors import UsageError
from lorawatch.launch import torchrun
from lorawatch.launch.placement import Placement
from lorawatch.recipe.schema import Recipe
from lorawatch.recorder.infofile import InfoFile
from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir, RunState
from lorawatch.text.sanitize import encodable


def start_command(run: RunDir, command: Sequence[str] | None, log: Path) -> subprocess.Popen[bytes]:
    """Start a user's own command.

    Args:
        command: As it was typed; None where this recorder was not given it.
        log: Takes its output.

    Raises:
        UsageError: The command is not known here.
        MissingDependency, OSError: It cannot be started.
    """
    if command is None:
        raise UsageError(
            f"the command of run {run.run_id} was given to another recorder and is in no file",
            hint="start it again: lorawatch --record -- CMD",
        )
    env = {**os.environ, RUN_DIR_VARIABLE: str(run.root), "PYTHONUNBUFFERED": "1"}
    return torchrun.start(list(command), env, log)


def start_recipe(
    run: RunDir,
    facts: InfoFile,
    state: RunState,
    recipe: Recipe,
    placement: Placement,
    more: Mapping[str, str],
    log: Path,
) -> subprocess.Popen[bytes]:
    """Start torchrun with the ranks of a recipe.

    Args:
        facts: Takes the command line.
        state: Says which attempt begins, and after which step.
        more: Variables for the ranks' environment.
        log: Takes torchrun's output.

    Raises:
        MissingDependency, OSError: It cannot be started.
    """
    separate = recipe.launch.strategy == "separate"
    command = torchrun.arguments(run, placement, max_restarts=recipe.launch.max_restarts, separate=separate)
    facts.started([encodable(word) for word in command])
    env = torchrun.environment(run, placement, first_attempt=state.attempt, resumed_at=state.resumed_at)
    return torchrun.start(command, {**env, **more}, log)
