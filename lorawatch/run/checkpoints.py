"""Checkpoints of a run: `checkpoints/step-00001000/`, a folder that is there whole or not at all, with a manifest.

The manifest names every file with its size and SHA-256 and is sealed by a digest of itself, so that whoever resumes can
tell a good checkpoint from a truncated one, and from one of other work, before a model is loaded. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.errors import CheckpointError, RecipeError
from lorawatch.recipe import identity, loading
from lorawatch.recipe.schema import Recipe
from lorawatch.system.files import read_json, write_atomically
from lorawatch.system.folders import make_durable
from lorawatch.text.sanitize import clean

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_PIECE = 1 << 20


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a checkpoint as it was written."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, kw_only=True):
    """`manifest.json`: what a checkpoint is, and what each of its files must be."""

    format: int = 1
    run_id: str
    step: int
    attempt: int
    """Which attempt saved it."""
    world_size: int
    """Ranks that train together; the order of the data hangs on it."""
    epoch: float
    batches_into_epoch: int
    """Where the data stands: batches of each rank since the epoch began."""
    created_at: float
    recipe: dict[str, Any]
    data: str
    """Fingerprint of the rows."""
    versions: dict[str, str]
    files: dict[str, StoredFile]
    seal: str = ""
    """SHA-256 of all of the above."""

    def sealed(self) -> str:
        """What the seal must be."""
        content = msgspec.json.encode(msgspec.structs.replace(self, seal=""), order="deterministic")
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def step(self) -> int:
        return self.manifest.step


def folder_name(step: int) -> str:
    """`step-00001000`: sorts by step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named for."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def folders(root: Path) -> list[Path]:
    """A run's checkpoints, the newest first, whole or not.

    Args:
        root: The run's `checkpoints` folder; it may be absent.
    """
    try:
        saved = [path for path in root.iterdir() if step_of(path) >= 0]
    except OSError:
        return []
    return sorted(saved, key=step_of, reverse=True)


def named(root: Path, name: str) -> Path:
    """The checkpoint that a person means: `step-40`, `step-00000040` or `40`.

    Raises:
        CheckpointError: There is none.
    """
    digits = name.removeprefix("step-")
    for folder in folders(root):
        if digits.isdecimal() and step_of(folder) == int(digits):
            return folder
    have = ", ".join(f.name for f in folders(root)) or "none"
    raise CheckpointError(f"there is no checkpoint {clean(name)!r} in {root}", hint=f"there: {have}")


def stored(path: Path, *, sync: bool = False) -> StoredFile:
    """Size and hash of a file.

    Args:
        sync: Also wait until the disk has it.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return StoredFile(size, digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal and write a manifest; the disk has it afterwards.

    Raises:
        OSError: The disk refuses it.
    """
    manifest.seal = manifest.sealed()
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1), durable=True)


def read(folder: Path) -> Checkpoint:
    """A checkpoint, once every file is what its manifest says; reads all of them.

    Raises:
        CheckpointError: It is damaged; says what is wrong with which file.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{folder.name} has no {MANIFEST}") from None
    except OSError as error:
        raise CheckpointError(f"{folder.name}: {MANIFEST} cannot be read: {error.strerror or error}") from None
    except msgspec.MsgspecError:
        raise CheckpointError(f"{folder.name}: {MANIFEST} is cut off, or no manifest") from None
    if manifest.seal != manifest.sealed():
        raise CheckpointError(f"{folder.name}: {MANIFEST} was changed after it was written")
    if folder.name != folder_name(manifest.step):
        raise CheckpointError(f"{folder.name} is the checkpoint of step {manifest.step}, under another name")
    for name, wanted in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != wanted.bytes:
                raise CheckpointError(
                    f"{folder.name}: {clean(name)} has {size:,} bytes, but {wanted.bytes:,} were written"
                )
            if stored(path).sha256 != wanted.sha256:
                raise CheckpointError(f"{folder.name}: the content of {clean(name)} is not what was written")
        except FileNotFoundError:
            raise CheckpointError(f"{folder.name}: {clean(name)} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{folder.name}: {clean(name)} cannot be read: {error.strerror or error}") from None
    return Checkpoint(folder, manifest)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two recipes differ: path, one's value, the other's; absent keys have their defaults.

    Raises:
        RecipeError: One of them is no recipe of this lorawatch.
    """
    flat = [dict(_flat(loading.from_dict(r).to_dict())) for r in (one, other)]
    return [
        (path, flat[0].get(path), flat[1].get(path))
        for path in dict.fromkeys([*flat[0], *flat[1]])
        if flat[0].get(path) != flat[1].get(path)
    ]


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def check_work(checkpoint: Checkpoint, recipe: Recipe, world_size: int) -> None:
    """See that a checkpoint is of the work that should go on.

    Args:
        recipe: The run's.
        world_size: Ranks that train together.

    Raises:
        CheckpointError: It is of another recipe, or of another number of ranks; says what differs.
    """
    manifest = checkpoint.manifest
    try:
        changed = differences(manifest.recipe, recipe.to_dict())
    except RecipeError as error:
        raise CheckpointError(f"{checkpoint.name} has a recipe that is none here: {error.message}") from None
    other = [(path, theirs, ours) for path, theirs, ours in changed if path not in identity.changeable()]
    if other:
        listed = "; ".join(f"{path} is {clean(repr(a))} there and {clean(repr(b))} here" for path, a, b in other)
        raise CheckpointError(f"{checkpoint.name} is from another recipe: {listed}")
    if manifest.world_size != world_size:
        raise CheckpointError(
            f"{checkpoint.name} is of {manifest.world_size} ranks, but the run has {world_size}: "
            "each rank would get other rows"
        )


def newest_good(
    root: Path,
    recipe: Recipe,
    world_size: int,
    *,
    before: int | None = None,
    resumed: tuple[int, int] | None = None,
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that a run can go on from.

    Args:
        before: Only those of a step before this one.
        resumed: The step that a resume went back to, and its attempt: what earlier attempts saved past that step is of
            a way that was given up.

    Returns:
        It, or None; and what is wrong with each that is newer.
    """
    wrong: list[str] = []
    for folder in folders(root):
        if before is not None and step_of(folder) >= before:
            continue
        try:
            candidate = read(folder)
            if resumed is not None and candidate.step > resumed[0] and candidate.manifest.attempt < resumed[1]:
                continue
            check_work(candidate, recipe, world_size)
        except CheckpointError as error:
            wrong.append(error.message)
        else:
            return candidate, wrong
    return None, wrong


def put_in_place(temporary: Path, target: Path) -> None:
    """Make a finished folder the checkpoint: whole for every reader, on the disk after a power cut. An older one of the
    same step goes.

    Raises:
        OSError: The disk refuses; the temporary folder is still there.
    """
    make_durable(temporary)
    if target.exists():
        remove(target)
    temporary.rename(target)
    make_durable(target.parent)


def prune(root: Path, keep: int, *, attempt: int, after: int) -> None:
    """Remove all checkpoints but the last `keep`, and first what is not of the way that training took.

    Args:
        attempt: The attempt that saves now.
        after: The step that it went on from. What others saved past that step was damaged, or is given up.
    """
    ours = []
    with contextlib.suppress(OSError):
        for folder in folders(root):
            if step_of(folder) > after and _attempt_of(folder) != attempt:
                remove(folder)
            else:
                ours.append(folder)
        for folder in ours[keep:]:
            remove(folder)


def _attempt_of(folder: Path) -> int | None:
    manifest = read_json(folder / MANIFEST, Manifest)
    return manifest.attempt if manifest is not None else None


def clear_unfinished(root: Path) -> None:
    """Remove what a save or a removal that was killed has left; for a run that has no living rank."""
    for folder in root.glob(".*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint; it is out of sight at once, so that a half of it is never taken for a damaged one.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder.exists():
        hidden = folder.with_name(f".removed-{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
