"""The start of a run's launcher by its recorder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorawatch.launch import interconnect
from lorawatch.launch.launcher import Attempt, Launcher, start
from lorawatch.launch.placement import Placement
from lorawatch.recipe.schema import Recipe
from lorawatch.recorder.infofile import InfoFile
from lorawatch.recorder.lines import RecorderLines
from lorawatch.run.directory import RunState

if TYPE_CHECKING:
    from lorawatch.telemetry.driver import GpuDriver


def start_launcher(
    launcher: Launcher, facts: InfoFile, state: RunState, variables: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a run's launcher, once its command line is written down.

    Args:
        facts: Takes the command line.
        state: Says which attempt begins, and after which step.
        variables: More for the ranks' environment.
        log: Takes the launcher's output.

    Raises:
        UsageError, MissingDependency, OSError: It cannot be started.
    """
    if (line := launcher.recorded_command) is not None:
        facts.started(list(line))
    return start(launcher, Attempt(state.attempt, state.resumed_at, variables), log)


def interconnect_variables(
    recipe: Recipe | None, placement: Placement | None, driver: GpuDriver | None, lines: RecorderLines
) -> dict[str, str]:
    """NCCL's variables for the ranks; says so where gradients take another way than NCCL would choose.

    Args:
        recipe, placement: None for an own command, whose environment is its user's.
        driver: The GPU driver; None on a machine without one.
    """
    if recipe is None or placement is None:
        return {}
    uuids = placement.gpu_uuids
    linked = driver is not None and len(uuids) > 1 and driver.linked(uuids)
    variables = interconnect.environment(recipe, len(uuids), linked=linked, base=os.environ)
    if variables:
        lines.say(
            "p2p", f"gradients go through the host's memory, so that NVLink sleeps (launch.p2p: {recipe.launch.p2p})"
        )
    return variables
