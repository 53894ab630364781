"""One rank's training: loads model and data, trains from a checkpoint or from step 1, and saves the adapter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from lorawatch.errors import LossNotFinite, NoSuitableGpu
from lorawatch.recipe.schema import Recipe
from lorawatch.run import checkpoints
from lorawatch.run.checkpoints import Checkpoint
from lorawatch.run.directory import RunDir
from lorawatch.system import folders, visible_devices
from lorawatch.training import disk_wait, fast_engine, gpu_memory, quantization
from lorawatch.training import model as models
from lorawatch.training.adapter_saver import save_adapter
from lorawatch.training.attention import check_documents_separate
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.callback import StepCallback
from lorawatch.training.checkpoint_saver import CheckpointSaver, find_checkpoint
from lorawatch.training.collator import Collator
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import PackedData, RecipeDatasets, TrainingData, build_datasets
from lorawatch.training.evaluation import Evaluator, check_equal_rows
from lorawatch.training.facts import ModelFacts, with_attention_span
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments
from lorawatch.training.start_barrier import StartBarrier

_never_freed: list[object] = []


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        step: The last step that was completed.
        stopped: Whether training ended early on request.
    """

    step: int
    stopped: bool


@dataclass(frozen=True)
class _Rank:
    """What a rank is asked to train, and where."""

    run: RunDir
    recipe: Recipe
    info: RankInfo
    observer: Observer
    device: torch.device


@dataclass(frozen=True)
class _Loaded:
    """What a rank has loaded before its first step.

    Attributes:
        model: A PeftModel on the rank's device.
        tokenizer: None where the rows are random tokens.
        facts: Sizes of the model, and its FLOPs a token for these rows.
        data: The rows to train on, and to evaluate on.
        start: The checkpoint that training continues from; None: training begins at step 1.
    """

    model: Any
    tokenizer: Any
    facts: ModelFacts
    data: RecipeDatasets
    start: Checkpoint | None


def train(run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, device_kind: str) -> Outcome:
    """Load, tokenize, train and save the adapter. Every rank calls it.

    A later attempt continues from the newest good checkpoint.

    Args:
        run: Its directory gets adapter and checkpoints.
        recipe: What to train.
        rank_info: Which rank this is.
        observer: The rank's side thread.
        device_kind: `cuda` or `cpu`.

    Raises:
        LorawatchError: The recipe, the data or a checkpoint cannot be used, the model is missing, or no GPU is suitable.
        LossNotFinite: The loss of a rank became NaN or infinite, and the recipe stops there.
        OSError: The disk does not take the adapter.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rank = _Rank(run, recipe, rank_info, observer, _device(device_kind, rank_info))
    arguments = training_arguments(recipe, run.checkpoints, rank.device)  # begins the process group
    set_seed(recipe.train.seed)
    loaded = _load(rank)
    set_seed(recipe.train.seed)  # so that the order of the batches does not depend on what loading drew
    counts = BatchCounts()
    callback = _step_callback(rank, loaded, counts)
    trainer = _make_trainer(rank, loaded, arguments, callback, counts)
    if loaded.start is not None and _is_complete(loaded.start, recipe):
        # The run ended between its last checkpoint and its adapter. The Trainer would take another step.
        trainer._load_from_checkpoint(str(loaded.start.folder))
        trainer.state.global_step = loaded.start.step
    else:
        trainer.train(resume_from_checkpoint=str(loaded.start.folder) if loaded.start else None)
    if recipe.train.on_nan == "stop":
        _check_finite(run, recipe, all_gather((rank_info.rank, callback.not_finite)))
    observer.phase("saving", "adapter")
    if rank_info.rank == 0:
        folders.recover(run.adapter)
        save = partial(save_adapter, run.adapter, loaded.model, loaded.tokenizer)
        disk_wait.save_with_retry(save, "the adapter", observer)
    # Dropping the last reference to a gloo process group holds the interpreter's lock and waits for threads that want
    # that lock, which can hang a rank that has finished. The rank ends with os._exit, so nothing needs to be freed.
    _never_freed.append((trainer, loaded.model))
    _leave_process_group(rank.device)
    step = int(trainer.state.global_step)
    observer.phase("finished", f"step {step}")
    return Outcome(step, stopped=callback.stopped_at is not None and step < trainer.state.max_steps)


def _load(rank: _Rank) -> _Loaded:
    """Load model and data, after everything that can be checked without them."""
    recipe, info, observer, device = rank.recipe, rank.info, rank.observer, rank.device
    observer.phase("loading", recipe.model.name)
    plan = models.plan_model(recipe)
    quantization.check(recipe, device)
    hint = partial(gpu_memory.out_of_memory_hint, recipe, info.model_world_size, device)
    models.check_memory(plan, device, hint)
    tokenizer = None if recipe.data.source == "synthetic" else models.load_tokenizer(plan)
    observer.phase("tokenizing", recipe.data.source)
    data = build_datasets(recipe, tokenizer, plan.vocabulary, info.model_world_size)
    start = find_checkpoint(rank.run, recipe, info, observer, data.train.fingerprint)
    held_out = f"; {len(data.evaluation):,} rows to evaluate on" if data.evaluation else ""
    observer.phase("loading", data.train.description() + held_out)
    model = models.load_model(plan, recipe, device)
    facts = plan.facts
    if isinstance(data.train, PackedData):
        check_documents_separate(model)
        packing = data.train.packing
        facts = with_attention_span(facts, plan.config, packing.length, packing.attention_span)
    if recipe.data.packing and info.rank == 0:
        observer.emit_event("packing", _packing_words(recipe, data.train))
    return _Loaded(model, tokenizer, facts, data, start)


def _step_callback(rank: _Rank, loaded: _Loaded, counts: BatchCounts) -> StepCallback:
    """What measures the rank's steps, with counts from the collator."""
    train = rank.recipe.train
    return StepCallback(
        exclude_steps=rank.recipe.measure.exclude_steps,
        observer=rank.observer,
        counts=counts,
        facts=loaded.facts,
        gate=StartBarrier(rank.run.control, rank.info) if rank.info.separate else None,
        checkpoint_every=train.checkpoint_every,
        on_nan=train.on_nan,
        evaluates=loaded.data.evaluation is not None,
        eval_every=train.eval_every,
    )


def _make_trainer(
    rank: _Rank, loaded: _Loaded, arguments: TrainingArguments, callback: StepCallback, counts: BatchCounts
) -> ReferenceTrainer:
    """The Trainer with the recipe's engine, checkpoints and evaluation.

    Raises:
        LorawatchError: The ranks would evaluate on different rows.
    """
    recipe, data, start = rank.recipe, loaded.data, loaded.start
    pad_id = 0 if loaded.tokenizer is None or loaded.tokenizer.pad_token_id is None else loaded.tokenizer.pad_token_id
    packing = data.train.packing if isinstance(data.train, PackedData) else None
    collator, engine = Collator(pad_id, counts, packing), None
    if recipe.train.engine == "fast":
        shape = recipe.train.batch_size_per_gpu, recipe.data.sequence_length
        collator = static = fast_engine.StaticCollator(pad_id, counts, *shape, packing)
        engine = fast_engine.FastEngine(recipe, static, rank.observer)
    evaluator = None
    if data.evaluation is not None:
        evaluator = Evaluator(data.evaluation, recipe.train.batch_size_per_gpu, rank.observer, loaded.tokenizer)
        check_equal_rows(all_gather(evaluator.fingerprint))
    fingerprint = data.train.fingerprint
    return ReferenceTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=data.train,
        data_collator=collator,
        callbacks=[callback] if engine is None else [engine, callback],
        fingerprint=fingerprint,
        step_callback=callback,
        engine=engine,
        saver=CheckpointSaver(rank.run, recipe, rank.info, rank.observer, fingerprint, start),
        evaluator=evaluator,
        repeat_first_step=start is not None and rank.info.model_world_size > 2,
    )


def _leave_process_group(device: torch.device) -> None:
    """End the process group once the adapter is saved, so that no rank takes the store away from others that use it."""
    if dist.is_initialized():
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
        dist.destroy_process_group()


def _is_complete(start: Checkpoint, recipe: Recipe) -> bool:
    """Whether a checkpoint holds the training's last step."""
    if recipe.train.steps is not None:
        return start.step >= recipe.train.steps
    return start.manifest.epoch >= recipe.train.epochs


def _check_finite(run: RunDir, recipe: Recipe, ranks: list[tuple[int, tuple[int, float] | None]]) -> None:
    """Check that every rank's loss stayed a finite number.

    Args:
        ranks: Each rank with the step at which its loss became NaN or infinite, and that loss; None where it did not.

    Raises:
        LossNotFinite: One did not; the message names rank, step and the last good checkpoint.
    """
    bad = [(at[0], rank, at[1]) for rank, at in ranks if at is not None]
    if not bad:
        return
    step, rank, loss = min(bad)
    good = next((f"; {f.name} is the last good checkpoint" for f in checkpoints.folders(run.checkpoints)), "")
    raise LossNotFinite(
        f"rank {rank}'s loss is {loss} at step {step}{good}",
        hint=f"lower train.learning_rate ({recipe.train.learning_rate:g}) or add train.warmup_steps, and start a new run"
        + (f"; to continue anyway: lorawatch --record --resume {run.run_id} --on-nan continue" if good else ""),
    )


def _device(kind: str, rank_info: RankInfo) -> torch.device:
    """This rank's device.

    Raises:
        NoSuitableGpu: torch does not see the rank's GPU.
    """
    if kind != "cuda":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if rank_info.device_index >= count:
        raise NoSuitableGpu(
            f"rank {rank_info.rank} needs GPU {rank_info.local_rank} of this host, but torch {torch.__version__} sees {count}",
            hint=f"{visible_devices.words(os.environ)}; `lorawatch doctor` shows what torch lacks",
        )
    device = torch.device("cuda", rank_info.device_index)
    torch.cuda.set_device(device)
    return device


def _packing_words(recipe: Recipe, data: TrainingData) -> str:
    """What packing saves."""
    if isinstance(data, PackedData):
        return data.summary(recipe.train.batch_size_per_gpu, to_longest=recipe.train.engine == "reference")
    return "data.packing changes nothing: random tokens are full rows already"
