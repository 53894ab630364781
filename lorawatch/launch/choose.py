"""Which launcher a run has: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorawatch.launch import command as own
from lorawatch.launch import torchrun
from lorawatch.launch.command import OwnCommand
from lorawatch.launch.launcher import Launcher
from lorawatch.launch.placement import Placement
from lorawatch.launch.torchrun import Torchrun
from lorawatch.run.directory import RunDir, RunInfo

if TYPE_CHECKING:
    from lorawatch.recipe.schema import Recipe

LOG_NAMES = (torchrun.LOG_NAME, own.LOG_NAME)
"""The files in a run's `logs/` that may hold its launcher's output; a run has one of them."""


def launcher_logs(run: RunDir) -> list[Path]:
    """Where a launcher's output may be; one of them is there once the run was started."""
    return [run.logs / name for name in LOG_NAMES]


def launcher_of(
    run: RunDir,
    info: RunInfo,
    *,
    command: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    placement: Placement | None = None,
) -> Launcher:
    """The launcher of a run.

    Args:
        info: What was asked.
        command: Of an own command's run: its arguments as they were typed.
        recipe, placement: Of a recipe's run. Without them, as without the command, the launcher cannot be started, and says what
            the end of one that was means.
    """
    if info.own_command:
        return OwnCommand(run, command)
    return Torchrun(run, recipe, placement, world_size=info.world_size)
