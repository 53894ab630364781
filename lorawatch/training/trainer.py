"""The reference engine: transformers' Trainer as everybody runs it, with lorawatch's callback: DDP under torchrun where
several ranks train one model, plain where a rank trains alone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from lorawatch.errors import LorawatchError, LossNotFinite, NoSuitableGpu
from lorawatch.recipe.schema import Recipe
from lorawatch.run import checkpoints
from lorawatch.run.checkpoints import Checkpoint
from lorawatch.run.directory import RunDir
from lorawatch.system import folders
from lorawatch.training import disk_wait, fast_engine, gpu_memory, quantization
from lorawatch.training import model as models
from lorawatch.training.adapter_saver import save_adapter
from lorawatch.training.attention import check_documents_separate
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.callback import StepCallback
from lorawatch.training.checkpoint_saver import CheckpointSaver, all_gather, find_checkpoint
from lorawatch.training.data import Collator, PackedData, SyntheticData, TokenizedData, build_datasets
from lorawatch.training.evaluation import Evaluator, check_equal_rows
from lorawatch.training.facts import with_attention_span
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.start_barrier import StartBarrier

_never_freed: list[object] = []


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        step: The last step done.
        stopped: Whether it ended early on request.
    """

    step: int
    stopped: bool


class ReferenceTrainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked here
    """The Trainer plus a check before the first step, that no rank will wait in a collective for a batch that another
    rank does not have, and checkpoints that are whole or not there."""

    fingerprint: str = ""
    repeat_first_step: bool = False
    """Whether the first step is computed once before it counts."""
    saver: CheckpointSaver | None = None
    steps: StepCallback | None = None
    engine: fast_engine.FastEngine | None = None
    evaluator: Evaluator | None = None

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """Sizes of the training, as the Trainer computes them.

        Raises:
            LorawatchError: The ranks have different numbers of batches, or different data.
        """
        values = super().set_initial_training_values(args, dataloader)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            check_equal_batches(all_gather((len(dataloader), len(self.train_dataset), self.fingerprint)))
        return values

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Random rows need no shuffling, and in a row their order does not hang on how many there are.
        if isinstance(self.train_dataset, SyntheticData):
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.saver is None or self.steps is None:
            super()._save_checkpoint(model, trial)
            return
        self.saver.save(self, self._discard_reason() or None)

    def _discard_reason(self) -> str:
        """Why this rank's training is not worth keeping; empty where it is, or goes on regardless. Waits for the device."""
        assert self.steps is not None
        assert self.saver is not None
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.steps.read_back()
        broken = self.steps.not_finite
        return f"the loss is {broken[1]} since step {broken[0]}" if broken and self.saver.stops_on_nan else ""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate between two steps, in the Trainer's words; without a figure where the evaluation was cut short."""
        if self.evaluator is None:
            found: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return found
        step, collate, broken = int(self.state.global_step), self.data_collator.without_counts(), self._discard_reason()
        with contextlib.nullcontext() if self.engine is None else self.engine.eager():
            done = self.evaluator.evaluate(step, self.model, collate, self.accelerator.autocast, broken)
        metrics: dict[str, float] = {}
        if done is not None:
            figures = {"loss": done.loss, "label_tokens": done.label_tokens, "runtime": done.duration_s}
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """A batch forward and back, and the ranks' gradients averaged: by DDP, or where the engine does that, by it.

        The first of a resumed training is gone through once more beforehand, for DDP: it lays the gradients out anew
        after its first step, and where three ranks or more sum them the layout decides in which order, and so the last
        digit. A training that goes on must have the layout that it had.
        """
        all_reduce = self.engine.all_reduce if self.engine is not None else None
        if self.engine is not None and self.engine.averages_gradients:
            model.require_backward_grad_sync = False
        elif self.repeat_first_step:
            assert self.steps is not None
            synced = model.require_backward_grad_sync
            model.require_backward_grad_sync = True
            device = self.args.device
            with self.steps.paused(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                super().training_step(model, dict(inputs), num_items_in_batch)
            model.zero_grad()
            model.require_backward_grad_sync = synced
        self.repeat_first_step = False
        loss = super().training_step(model, inputs, num_items_in_batch)
        if all_reduce is not None and self.accelerator.sync_gradients:
            all_reduce()
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # The Trainer loads onto "cpu:0" where ranks train on the CPU, which torch does not know. From the host's memory
        # the states go where the parameters are.
        if checkpoint is None:
            return
        for part, file in ((self.optimizer, "optimizer.pt"), (self.lr_scheduler, "scheduler.pt")):
            part.load_state_dict(torch.load(Path(checkpoint) / file, map_location="cpu", weights_only=True))


def check_equal_batches(ranks: list[tuple[int, int, str]]) -> None:
    """See that all ranks have the same number of batches of the same data.

    Args:
        ranks: For each rank: batches an epoch, rows, fingerprint of the rows.

    Raises:
        LorawatchError: They differ; says which.
    """
    if len(set(ranks)) == 1:
        return
    hint = "the data file differs between hosts, or changed meanwhile"
    if len({(batches, rows) for batches, rows, _ in ranks}) == 1:
        odd = [str(r) for r, (_, _, print_) in enumerate(ranks) if print_ != ranks[0][2]]
        raise LorawatchError(f"rank {', '.join(odd)} read other data than rank 0", hint=hint)
    listed = ", ".join(f"rank {r}: {batches} batches of {rows} rows" for r, (batches, rows, _) in enumerate(ranks))
    raise LorawatchError(f"the ranks have different numbers of batches ({listed})", hint=hint)


def train(run: RunDir, recipe: Recipe, rank_info: RankInfo, observer: Observer, device_kind: str) -> Outcome:
    """Load, tokenize, train, and save the adapter; called on every rank.

    Args:
        run: Where adapter and checkpoints go.
        recipe: What to do.
        place: Which rank this is.
        observer: The rank's side thread.
        device_kind: `cuda` or `cpu`.

    A later attempt goes on from the newest good checkpoint.

    Raises:
        LorawatchError: Bad input, a missing model, no suitable GPU, a checkpoint of other data.
        LossNotFinite: The loss of a rank became NaN or infinite, and the recipe stops there.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = _device(device_kind, rank_info)
    # The arguments begin the process group, with the backend of the device.
    arguments = training_arguments(recipe, run.checkpoints, device)
    set_seed(recipe.train.seed)
    observer.phase("loading", recipe.model.name)
    plan = models.plan_model(recipe)
    quantization.check(recipe, device)
    models.check_memory(
        plan, device, partial(gpu_memory.out_of_memory_hint, recipe, rank_info.model_world_size, device)
    )
    tokenizer = None if recipe.data.source == "synthetic" else models.load_tokenizer(plan)
    observer.phase("tokenizing", recipe.data.source)
    data, held_out = build_datasets(recipe, tokenizer, plan.vocabulary, rank_info.model_world_size)
    start = find_checkpoint(run, recipe, rank_info, observer, data.fingerprint)
    observer.phase("loading", _data_summary(data) + (f"; {len(held_out):,} rows to evaluate on" if held_out else ""))
    model = models.load_model(plan, recipe, device)
    packing, facts = None, plan.facts
    if isinstance(data, PackedData):
        check_documents_separate(model)
        packing, facts = (
            data.packing,
            with_attention_span(facts, plan.config, data.packing.length, data.packing.attention_span),
        )
    if recipe.data.packing and rank_info.rank == 0:
        _emit_packing(observer, recipe, data)
    set_seed(recipe.train.seed)  # batches in the same order whatever loading drew
    counts = BatchCounts()
    exclude = recipe.measure.exclude_steps
    gate = StartBarrier(run.control, rank_info) if rank_info.separate else None
    callback = StepCallback(
        exclude_steps=exclude,
        observer=observer,
        counts=counts,
        facts=facts,
        gate=gate,
        checkpoint_every=recipe.train.checkpoint_every,
        on_nan=recipe.train.on_nan,
        evaluates=held_out is not None,
        eval_every=recipe.train.eval_every,
    )
    pad_id = 0 if tokenizer is None or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    collator, engine, callbacks = Collator(pad_id, counts, packing), None, [callback]
    if recipe.train.engine == "fast":
        shape = recipe.train.batch_size_per_gpu, recipe.data.sequence_length
        collator = fast_engine.StaticCollator(pad_id, counts, *shape, packing)
        engine = fast_engine.FastEngine(recipe, collator, observer)
        callbacks = [engine, callback]
    trainer = ReferenceTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=callbacks
    )
    trainer.fingerprint = data.fingerprint
    trainer.saver = CheckpointSaver(run, recipe, rank_info, observer, data.fingerprint, start)
    trainer.steps = callback
    trainer.engine = engine
    trainer.repeat_first_step = start is not None and rank_info.model_world_size > 2
    if held_out is not None:
        trainer.evaluator = Evaluator(held_out, recipe.train.batch_size_per_gpu, observer, tokenizer)
        check_equal_rows(all_gather(trainer.evaluator.fingerprint))
    if start is not None and _is_complete(start, recipe):
        # Ended between its last checkpoint and its adapter. The Trainer would take another step before it looks.
        trainer._load_from_checkpoint(str(start.folder))
        trainer.state.global_step = start.step
    else:
        trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
    if recipe.train.on_nan == "stop":
        _check_finite(run, recipe, all_gather((rank_info.rank, callback.not_finite)))
    observer.phase("saving", "adapter")
    if rank_info.rank == 0:
        folders.recover(run.adapter)
        disk_wait.save_with_retry(partial(save_adapter, run.adapter, model, tokenizer), "the adapter", observer)
    # The last reference to a gloo process group, dropped with the interpreter's lock held, waits for threads that want
    # that lock: seen to hang a rank that had finished. The rank leaves by os._exit, so that nothing needs to be freed.
    _never_freed.append((trainer, model))
    if dist.is_initialized():
        # Nobody leaves before the adapter is there, nor takes the store away from those who still use it.
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)
        dist.destroy_process_group()
    step = int(trainer.state.global_step)
    stopped = callback.stopped_at is not None and step < trainer.state.max_steps
    observer.phase("finished", f"step {step}")
    return Outcome(step, stopped)


def _is_complete(start: Checkpoint, recipe: Recipe) -> bool:
    """Whether a checkpoint is of the training's last step."""
    if recipe.train.steps is not None:
        return start.step >= recipe.train.steps
    return start.manifest.epoch >= recipe.train.epochs


def _check_finite(run: RunDir, recipe: Recipe, ranks: list[tuple[int, tuple[int, float] | None]]) -> None:
    """See that no rank's loss has become NaN or infinite.

    Args:
        ranks: Each rank with the step at which it did, and its loss there.

    Raises:
        LossNotFinite: One's did; says whose, when, and what is left.
    """
    broken = [(at[0], rank, at[1]) for rank, at in ranks if at is not None]
    if not broken:
        return
    step, rank, loss = min(broken)
    good = next((f"; {f.name} is the last good checkpoint" for f in checkpoints.folders(run.checkpoints)), "")
    raise LossNotFinite(
        f"rank {rank}'s loss is {loss} at step {step}{good}",
        hint=f"lower train.learning_rate ({recipe.train.learning_rate:g}) or add train.warmup_steps and start anew"
        + (f", or go on regardless: lorawatch --record --resume {run.run_id} --on-nan continue" if good else ""),
    )


def training_arguments(recipe: Recipe, output: Path, device: torch.device) -> TrainingArguments:
    """The recipe in the Trainer's words: on a GPU mixed precision as the base weights' format asks for, plain on the
    CPU; nothing is logged, evaluated or saved on the way."""
    train = recipe.train
    cuda = device.type == "cuda"
    schedule = train.schedule
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=train.batch_size_per_gpu,
        gradient_accumulation_steps=train.gradient_accumulation,
        max_steps=-1 if train.steps is None else train.steps,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" and train.warmup_steps else schedule,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        # Not the reentrant kind: it finds no gradient to pass on below frozen layers, and DDP counts its buckets wrongly.
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        seed=train.seed,
        bf16=cuda and recipe.model.dtype == "bfloat16",
        fp16=cuda and recipe.model.dtype == "float16",
        use_cpu=not cuda,
        # Only under torchrun: accelerate takes a named backend for a process group that is there.
        ddp_backend=("nccl" if cuda else "gloo") if "LOCAL_RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        **(fast_engine.trainer_arguments(cuda) if train.engine == "fast" else {}),
    )


def _device(kind: str, rank_info: RankInfo) -> torch.device:
    if kind != "cuda":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if rank_info.device_index >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoSuitableGpu(
            f"rank {rank_info.rank} needs GPU {rank_info.local_rank} of this host, but torch {torch.__version__} sees {count}",
            hint=f"CUDA_VISIBLE_DEVICES is {visible!r}; `lorawatch doctor` says what torch lacks",
        )
    device = torch.device("cuda", rank_info.device_index)
    torch.cuda.set_device(device)
    return device


def _emit_packing(observer: Observer, recipe: Recipe, data: SyntheticData | TokenizedData | PackedData) -> None:
    """One event: what packing saves."""
    if isinstance(data, PackedData):
        summary = data.summary(recipe.train.batch_size_per_gpu, to_longest=recipe.train.engine == "reference")
    else:
        summary = "data.packing changes nothing: random tokens are full rows already"
    observer.emit_event("packing", summary)


def _data_summary(data: SyntheticData | TokenizedData | PackedData) -> str:
    if isinstance(data, SyntheticData):
        return f"{len(data):,} rows of random tokens"
    if isinstance(data, PackedData):
        packing = data.packing
        return (
            f"{_data_summary(data.rows)}, {len(data):,} blocks of {packing.length} with {packing.padding:.1%} padding"
        )
    parts = [f"{len(data):,} rows, {data.tokens:,} tokens"]
    if data.cut:
        parts.append(f"{data.cut:,} cut")
    if data.dropped:
        parts.append(f"{data.dropped:,} dropped")
    return ", ".join(parts)
