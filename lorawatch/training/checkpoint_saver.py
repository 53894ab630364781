"""Saves the whole state of a training, and finds the checkpoint that an attempt continues from.

Adapter, optimizer, schedule, scaler, the Trainer's state and each rank's random numbers go into a temporary folder.
Once all ranks have written their part and it is on the disk, rank 0 renames the folder. The ranks communicate only at a
step that saves. After a save that fails, training continues and the previous checkpoint stays.
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
    """What a rank has written for a checkpoint, sent to all ranks.

    Attributes:
        error: Why its part is not on the disk, or None.
        not_finite: Why its state must not be kept, or None.
        files: The files of its part.
    """

    error: str | None = None
    not_finite: str | None = None
    files: dict[str, StoredFile] = field(default_factory=dict)


def find_checkpoint(
    run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, data: str
) -> Checkpoint | None:
    """The newest good checkpoint, which this attempt continues from. None in a run's first attempt, and where there is
    none.

    Rank 0 looks and sends the result to all ranks, so that all ranks use the same checkpoint.

    Args:
        run: The run.
        recipe: What is trained.
        rank_info: Which rank this is.
        observer: Gets events on checkpoints that are refused, and on the one that is used.
        data: Fingerprint of the rows to train on.

    Raises:
        CheckpointError: The checkpoint was trained on other rows.
    """
    if rank_info.attempt == 0 or rank_info.separate:
        return None
    checkpoint: Checkpoint | None = None
    if rank_info.rank == 0:
        checkpoints.clear_unfinished(run.checkpoints)
        checkpoint, wrong = checkpoints.newest_good(
            run.checkpoints, recipe, rank_info.model_world_size, resumed=rank_info.resumed
        )
        for words in wrong:
            observer.emit_event("checkpoint_refused", f"{words}; it is passed over", "warning")
        if checkpoint is None and wrong:
            observer.emit_event("checkpoint_refused", "no good checkpoint is left: training begins at step 1", "error")
    checkpoint = all_gather(checkpoint)[0]
    if checkpoint is None:
        return None
    if checkpoint.manifest.data != data:
        raise CheckpointError(
            f"{checkpoint.name} was trained on other rows than {recipe.data.source} has now",
            hint="restore the data as it was; training cannot continue in the same order of rows otherwise",
        )
    if rank_info.rank == 0:
        changed = [
            f"{name} {was} then, {now} now"
            for name, was in checkpoint.manifest.versions.items()
            if (now := _versions().get(name)) != was
        ]
        if changed:
            words = f"the losses may differ in their last digits: {', '.join(changed)}"
            observer.emit_event("versions_changed", words, "warning")
        observer.emit_event("resumed", f"training goes on after step {checkpoint.step}, from {checkpoint.name}")
    return checkpoint


class CheckpointSaver:
    """Writes a run's checkpoints. Every rank makes the same calls.

    Args:
        run: Its `checkpoints` folder gets them.
        recipe: What is trained.
        rank_info: Which rank this is.
        observer: Gets an event for each save.
        data: Fingerprint of the rows to train on.
        start: The checkpoint that this attempt continues from.
    """

    def __init__(
        self, run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, data: str, start: Checkpoint | None
    ) -> None:
        self._run, self._recipe, self._rank_info, self._observer, self._data = run, recipe, rank_info, observer, data
        self._after = start.step if start is not None else 0

    @property
    def stops_on_nan(self) -> bool:
        """Whether the recipe stops a run whose loss is not a finite number."""
        return self._recipe.train.on_nan == "stop"

    def save(self, trainer: Any, not_finite: str | None) -> bool:
        """Save the state of the training after a step. What the disk refuses is journaled and raises nothing.

        Args:
            trainer: The Trainer, between two steps.
            not_finite: Why this rank's state must not be kept, or None.

        Returns:
            Whether the checkpoint was saved, on rank 0; on another rank, whether its own part was.
        """
        began = time.monotonic()
        step = int(trainer.state.global_step)
        root = self._run.checkpoints
        # The same name on all ranks, and not one that an earlier attempt may have left behind.
        temporary = root / f".{checkpoints.folder_name(step)}.attempt_{self._rank_info.attempt}"
        part = _RankPart(not_finite=not_finite or _weights_not_finite(trainer))
        try:
            if part.not_finite is None:
                temporary.mkdir(parents=True, exist_ok=True)
                part.files = self._write_part(trainer, temporary)
        except Exception as error:  # noqa: BLE001  what writing raises depends on the library that writes
            part.error = _write_error(error, self._run.root)
        parts = all_gather(part)
        if self._rank_info.rank != 0:
            return part.error is None
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
    """Why the adapter must not be kept, or None where all its weights are finite numbers. Waits for the device, as a
    save does.
    """
    trained = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    if bool(torch.stack([torch.isfinite(p).all() for p in trained]).all()):
        return None
    return "the adapter's weights are no longer finite numbers"


def _write_error(error: Exception, folder: Path) -> str:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    if "inline_container" in words:  # torch's message where the disk takes less than it was given
        words = "the disk refuses it"
    with contextlib.suppress(OSError):
        words += f" ({shutil.disk_usage(folder).free / 1e6:,.0f} MB free)"
    return words


def _versions() -> dict[str, str]:
    """Versions of the packages that compute: another version may round differently."""
    versions = {"lorawatch": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
