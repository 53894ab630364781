"""Saves a training whole, and finds what a training goes on from.

Adapter, optimizer, schedule, scaler, the Trainer's state and each rank's random numbers go into a temporary folder; once
all ranks have written their part and it is on the disk, rank 0 gives it its name. The ranks speak to each other at a
step that saves, and at no other. A save that fails costs itself: training goes on, and the checkpoint before it stays.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorawatch.errors import CheckpointError
from lorawatch.recipe.schema import Recipe
from lorawatch.run import checkpoints
from lorawatch.run.checkpoints import Checkpoint, Manifest, StoredFile
from lorawatch.run.directory import RunDir
from lorawatch.system.version import __version__
from lorawatch.training.adapter_saver import write_adapter
from lorawatch.training.collectives import all_gather
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo


@dataclass
class _RankPart:
    """What a rank has done for a checkpoint, told to the others.

    Attributes:
        error: Why its part is not on the disk, or None.
        not_finite: Why the state is not worth keeping, or None.
        files: Its part.
    """

    error: str | None = None
    not_finite: str | None = None
    files: dict[str, StoredFile] = field(default_factory=dict)


def find_checkpoint(
    run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, data: str
) -> Checkpoint | None:
    """What this attempt goes on from: the newest good checkpoint; None at a run's first attempt, and where there is none.

    Rank 0 looks and all ranks hear of it, so that none can choose another.

    Args:
        data: Fingerprint of the rows.

    Raises:
        CheckpointError: The rows are not those that the checkpoint was trained on.
    """
    if rank_info.attempt == 0 or rank_info.separate:
        return None
    found: Checkpoint | None = None
    if rank_info.rank == 0:
        checkpoints.clear_unfinished(run.checkpoints)
        found, wrong = checkpoints.newest_good(
            run.checkpoints, recipe, rank_info.model_world_size, resumed=rank_info.resumed
        )
        for words in wrong:
            observer.emit_event("checkpoint_refused", f"{words}; it is passed over", "warning")
        if found is None and wrong:
            observer.emit_event("checkpoint_refused", "no good checkpoint is left: training begins at step 1", "error")
    found = all_gather(found)[0]
    if found is None:
        return None
    if found.manifest.data != data:
        raise CheckpointError(
            f"{found.name} was trained on other rows than {recipe.data.source} has now",
            hint="bring the data back as it was; the order of the rows cannot go on otherwise",
        )
    if rank_info.rank == 0:
        changed = [
            f"{name} {was} then, {now} now"
            for name, was in found.manifest.versions.items()
            if (now := _versions().get(name)) != was
        ]
        if changed:
            words = f"the losses may differ in their last digits: {', '.join(changed)}"
            observer.emit_event("versions_changed", words, "warning")
        observer.emit_event("resumed", f"training goes on after step {found.step}, from {found.name}")
    return found


class CheckpointSaver:
    """Writes a run's checkpoints; the same calls on every rank.

    Args:
        run: Whose `checkpoints` folder they go to.
        recipe: What is trained.
        place: Which rank this is.
        observer: Tells what happened.
        data: Fingerprint of the rows.
        start: What this attempt goes on from.
    """

    def __init__(
        self, run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, data: str, start: Checkpoint | None
    ) -> None:
        self._run, self._recipe, self._rank_info, self._observer, self._data = run, recipe, rank_info, observer, data
        self._after = start.step if start is not None else 0

    @property
    def stops_on_nan(self) -> bool:
        return self._recipe.train.on_nan == "stop"

    def save(self, trainer: Any, not_finite: str | None) -> bool:
        """Save the training as it stands, after a step; never raises for what a disk does.

        Args:
            trainer: The Trainer, between two steps.
            not_finite: Why this rank's state is not worth keeping, or None.

        Returns:
            Whether this rank saw it done; only rank 0 sees all.
        """
        began = time.monotonic()
        step = int(trainer.state.global_step)
        root = self._run.checkpoints
        # One name for all ranks, and none that an earlier attempt's ranks may have left behind.
        temporary = root / f".{checkpoints.folder_name(step)}.attempt_{self._rank_info.attempt}"
        mine = _RankPart(not_finite=not_finite or _weights_not_finite(trainer))
        try:
            if mine.not_finite is None:
                temporary.mkdir(parents=True, exist_ok=True)
                mine.files = self._write_part(trainer, temporary)
        except Exception as error:  # noqa: BLE001  what writing raises depends on the library that writes
            mine.error = _write_error(error, self._run.root)
        parts = all_gather(mine)
        if self._rank_info.rank != 0:
            return mine.error is None
        try:
            self._finish(trainer, temporary, parts)
        except (CheckpointError, OSError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.message if isinstance(error, CheckpointError) else str(error)
            stays = next((f" {f.name} stays." for f in checkpoints.folders(root)), "")
            self._observer.emit_event("checkpoint_failed", f"no checkpoint of step {step}: {reason}.{stays}", "warning")
            return False
        took = time.monotonic() - began
        size = sum(f.bytes for part in parts for f in part.files.values())
        name = checkpoints.folder_name(step)
        self._observer.emit_event("checkpoint", f"{name} saved: {size / 1e6:,.1f} MB in {took:.2f} s")
        return True

    def _write_part(self, trainer: Any, folder: Path) -> dict[str, StoredFile]:
        trainer._save_rng_state(str(folder))
        if self._rank_info.rank == 0:
            write_adapter(folder, trainer.model)
            trainer._save_optimizer_and_scheduler(str(folder))
            trainer._save_scaler(str(folder))
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
        own = f"rng_state_{self._rank_info.rank}.pth"
        return {
            path.name: checkpoints.stored(path, sync=True)
            for path in sorted(folder.iterdir())
            if path.is_file() and (path.name == own or (self._rank_info.rank == 0 and not _is_anothers(path.name, own)))
        }

    def _finish(self, trainer: Any, temporary: Path, parts: list[_RankPart]) -> None:
        for rank, part in enumerate(parts):
            if part.not_finite:
                raise CheckpointError(f"{part.not_finite} (rank {rank})")
        for rank, part in enumerate(parts):
            if part.error:
                raise CheckpointError(f"rank {rank} cannot write its part: {part.error}")
        step = int(trainer.state.global_step)
        batches = len(trainer.callback_handler.train_dataloader)
        per_epoch = math.ceil(batches / self._recipe.train.gradient_accumulation)
        checkpoints.write_manifest(
            temporary,
            Manifest(
                run_id=self._run.run_id,
                step=step,
                attempt=self._rank_info.attempt,
                world_size=self._rank_info.model_world_size,
                epoch=float(trainer.state.epoch),
                batches_into_epoch=step % per_epoch * self._recipe.train.gradient_accumulation,
                created_at=time.time(),
                recipe=self._recipe.to_dict(),
                data=self._data,
                versions=_versions(),
                files={name: stored for part in parts for name, stored in part.files.items()},
            ),
        )
        target = self._run.checkpoints / checkpoints.folder_name(step)
        checkpoints.put_in_place(temporary, target)
        keep = self._recipe.train.keep_checkpoints
        checkpoints.prune(self._run.checkpoints, keep, attempt=self._rank_info.attempt, after=self._after)


def _is_anothers(name: str, own: str) -> bool:
    return name.startswith("rng_state_") and name != own


def _weights_not_finite(trainer: Any) -> str | None:
    """Whether training has broken the adapter; waits for the device, as a save does anyway."""
    trained = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    if bool(torch.stack([torch.isfinite(p).all() for p in trained]).all()):
        return None
    return "the adapter's weights are no longer finite numbers"


def _write_error(error: Exception, folder: Path) -> str:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if "inline_container" in words:  # torch's way to say that the disk took less than it was given
        words = "the disk refuses it"
    with contextlib.suppress(OSError):
        words += f" ({shutil.disk_usage(folder).free / 1e6:,.0f} MB free)"
    return words


def _versions() -> dict[str, str]:
    """Of what computes: another may round differently."""
    found = {"lorawatch": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
