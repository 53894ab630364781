"""From a recipe or a command to a run directory that a recorder can start."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.launch import torchrun
from lorawatch.launch.placement import Placement, place
from lorawatch.recipe.devices import parse_gpus
from lorawatch.recipe.schema import Recipe
from lorawatch.run.directory import Gpu, RunDir, RunInfo
from lorawatch.system.files import write_atomically
from lorawatch.system.home import host_name
from lorawatch.system.version import __version__
from lorawatch.text.masking import mask_arguments, mask_text
from lorawatch.text.sanitize import clean, encodable

MOST_TAGS = 32
LONGEST_TAG = 100


def check_tags(tags: Sequence[str]) -> list[str]:
    """Words to find a run by, as they are kept.

    Raises:
        UsageError: One is empty, too long, or no text; or there are too many.
    """
    hint = f"a tag is a word or a few, at most {LONGEST_TAG} characters"
    if len(tags) > MOST_TAGS:
        raise UsageError(f"{len(tags)} tags are too many for a run", hint=f"give at most {MOST_TAGS}")
    for tag in tags:
        shown = clean(tag)[:LONGEST_TAG] + ("…" if len(tag) > LONGEST_TAG else "")
        if len(tag) > LONGEST_TAG:
            raise UsageError(f"--tag {shown!r} has {len(tag):,} characters", hint=hint)
        if not tag.strip():
            raise UsageError(f"--tag {shown!r} is empty", hint=hint)
        if clean(tag) != tag or any(c in tag for c in "\n\t"):
            raise UsageError(f"--tag {shown!r} has characters that are no text", hint=hint)
    return list(tags)


def prepare_recipe(
    recipe: Recipe,
    gpus: Sequence[Gpu],
    *,
    driver_version: str | None = None,
    count: int | None = None,
    tags: Sequence[str] = (),
    sweep_id: str | None = None,
) -> tuple[RunDir, Placement]:
    """Make the run directory of a recipe: `run.json`, `recipe.yaml`, empty journals.

    Args:
        gpus: The host's GPUs as the driver lists them.
        count: A sweep's point: use only so many of the GPUs (or CPU ranks).

    Raises:
        NoSuitableGpu: The devices asked for are not there.
        LorawatchError: The home cannot be written.
    """
    request = parse_gpus(recipe.launch.gpus)
    placement = place(request, gpus, count=count)
    version = torchrun.torch_version()
    run = _create(
        RunInfo(
            run_id="",
            name=recipe.name,
            world_size=placement.world_size,
            device=placement.device,
            recipe=recipe.to_dict(),
            sample_hz=recipe.measure.sample_hz,
            gpus=_marked(gpus, placement.gpu_uuids),
            torch_version=version,
            driver_version=driver_version,
            tags=check_tags(tags),
            sweep_id=sweep_id,
            **_who_and_where(),  # type: ignore[arg-type]
        )
    )
    write_atomically(run.recipe, recipe.to_yaml().encode())
    return run, placement


def prepare_command(
    command: Sequence[str],
    gpus: Sequence[Gpu],
    *,
    driver_version: str | None = None,
    tags: Sequence[str] = (),
    sample_hz: float = 5.0,
) -> RunDir:
    """Make the run directory of a user's own command. Which GPUs it uses shows once its ranks say so.

    Raises:
        LorawatchError: The home cannot be written.
    """
    try:
        version: str | None = torchrun.torch_version()
    except LorawatchError:
        version = None  # the command may live in another environment
    return _create(
        RunInfo(
            run_id="",
            name=clean(mask_text(Path(command[0]).name))[:64] or "command",
            world_size=0,
            command=[encodable(word) for word in mask_arguments(command)],
            own_command=True,
            sample_hz=sample_hz,
            gpus=_marked(gpus, ()),
            torch_version=version,
            driver_version=driver_version,
            tags=check_tags(tags),
            **_who_and_where(),  # type: ignore[arg-type]
        )
    )


def _create(info: RunInfo) -> RunDir:
    try:
        return RunDir.create(info)
    except OSError as error:
        raise LorawatchError(
            f"a run directory cannot be made: {error.strerror}: {error.filename}",
            hint="free some space, or point LORAWATCH_HOME at a folder that can be written",
        ) from None


def _marked(gpus: Sequence[Gpu], used: Sequence[str]) -> list[Gpu]:
    for gpu in gpus:
        gpu.used = gpu.gpu_uuid in used
    return list(gpus)


def _who_and_where() -> dict[str, object]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    try:
        cwd = encodable(str(Path.cwd()))
    except OSError:  # it was removed
        cwd = None
    return {
        "created_at": time.time(),
        "host": host_name(),
        "user": clean(user),
        "lorawatch_version": __version__,
        "git_commit": _git_commit(),
        "cwd": cwd,
    }


def _git_commit() -> str | None:
    """The commit of the folder that the run is started in, `+` where it has changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()[:40] + ("+" if dirty.stdout.strip() else "")
