"""The reference engine: transformers' Trainer with lorawatch's checkpoints, evaluation and checks between ranks.

Several ranks that train one model use DDP under torchrun. A rank that trains its own model uses none.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from lorawatch.errors import LorawatchError
from lorawatch.recipe.schema import Recipe
from lorawatch.training import fast_engine
from lorawatch.training.callback import StepCallback
from lorawatch.training.checkpoint_saver import CheckpointSaver
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import SyntheticData
from lorawatch.training.evaluation import Evaluator


class ReferenceTrainer(Trainer):  # type: ignore[misc]  # transformers is not type-checked here
    """transformers' Trainer with lorawatch's parts.

    Before the first step all ranks compare their data, so that no rank waits in a collective for a batch that another
    rank does not have.

    Args:
        fingerprint: Of the rows to train on.
        step_callback: Measures the steps; it is also one of the Trainer's callbacks.
        engine: Compiles the step; it is also one of the Trainer's callbacks. None: the step runs eagerly.
        saver: Writes checkpoints; None: the Trainer writes its own.
        evaluator: Evaluates; None: the Trainer's own loop does.
        repeat_first_step: Compute the first step once before it counts (see `training_step`).
        trainer_options: The Trainer's own arguments.
    """

    def __init__(
        self,
        *,
        fingerprint: str = "",
        step_callback: StepCallback | None = None,
        engine: fast_engine.FastEngine | None = None,
        saver: CheckpointSaver | None = None,
        evaluator: Evaluator | None = None,
        repeat_first_step: bool = False,
        **trainer_options: Any,
    ) -> None:
        self.step_callback = step_callback
        self._fingerprint = fingerprint
        self._engine = engine
        self._saver = saver
        self._evaluator = evaluator
        self._repeat_first_step = repeat_first_step
        super().__init__(**trainer_options)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """Sizes of the training, as the Trainer computes them.

        Raises:
            LorawatchError: The ranks have different numbers of batches, or different data.
        """
        values = super().set_initial_training_values(args, dataloader)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            check_equal_batches(all_gather((len(dataloader), len(self.train_dataset), self._fingerprint)))
        return values

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Random rows need no shuffling. In sequence, the first rows are the same however many follow.
        if isinstance(self.train_dataset, SyntheticData):
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._saver is None:
            super()._save_checkpoint(model, trial)
            return
        self._saver.save(self, self._discard_reason() or None)

    def _discard_reason(self) -> str:
        """Why this rank's state must not be saved or evaluated; empty where it may. Waits for the device."""
        if self.step_callback is None or self._saver is None:
            return ""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.step_callback.read_back()
        bad = self.step_callback.not_finite
        return f"the loss is {bad[1]} since step {bad[0]}" if bad and self._saver.stops_on_nan else ""

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate between two steps.

        Returns:
            `eval_loss` (nats a label token), `eval_label_tokens` and `eval_runtime` (seconds); empty where the evaluation
            was cut short.
        """
        if self._evaluator is None:
            own: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return own
        step, collate = int(self.state.global_step), self.data_collator.without_counts()
        reason = self._discard_reason()
        with contextlib.nullcontext() if self._engine is None else self._engine.eager():
            result = self._evaluator.evaluate(step, self.model, collate, self.accelerator.autocast, reason)
        metrics: dict[str, float] = {}
        if result is not None:
            figures = {"loss": result.loss, "label_tokens": result.label_tokens, "runtime": result.duration_s}
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One batch forward and backward; the gradients are averaged over the ranks by DDP, or by the engine.

        After its first step DDP lays the gradients out again, and with three ranks or more the layout decides the order
        in which they are summed, and so the last digit. A resumed training must have the layout that it had before the
        interruption, so its first step is computed once more beforehand and the result is dropped.

        Args:
            model: Wrapped by DDP where several ranks train it.
            inputs: A batch: `input_ids` and `labels` of shape (rows, positions), INT64, and what comes with them.
            num_items_in_batch: Label tokens of all micro-batches and ranks.

        Returns:
            The batch's share of the step's loss, detached, of shape ().
        """
        all_reduce = self._engine.all_reduce if self._engine is not None else None
        if self._engine is not None and self._engine.averages_gradients:
            model.require_backward_grad_sync = False
        elif self._repeat_first_step:
            self._compute_and_drop(model, inputs, num_items_in_batch)
        self._repeat_first_step = False
        loss = super().training_step(model, inputs, num_items_in_batch)
        if all_reduce is not None and self.accelerator.sync_gradients:
            all_reduce()
        return loss

    def _compute_and_drop(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> None:
        """Compute a step with an exchange of its gradients, and leave gradients, random state and figures unchanged."""
        synced = model.require_backward_grad_sync
        model.require_backward_grad_sync = True
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        unmeasured = contextlib.nullcontext() if self.step_callback is None else self.step_callback.paused()
        with unmeasured, torch.random.fork_rng(devices):
            super().training_step(model, dict(inputs), num_items_in_batch)
        model.zero_grad()
        model.require_backward_grad_sync = synced

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # On the CPU the Trainer loads onto "cpu:0", which torch does not know. Loaded into the host's memory, the states
        # are moved to where the parameters are.
        if checkpoint is None:
            return
        for part, file in ((self.optimizer, "optimizer.pt"), (self.lr_scheduler, "scheduler.pt")):
            part.load_state_dict(torch.load(Path(checkpoint) / file, map_location="cpu", weights_only=True))


def check_equal_batches(ranks: list[tuple[int, int, str]]) -> None:
    """Check that all ranks have the same number of batches of the same data.

    Args:
        ranks: For each rank: batches of an epoch, rows, fingerprint of the rows.

    Raises:
        LorawatchError: They differ; the message names the ranks.
    """
    if len(set(ranks)) == 1:
        return
    hint = "the data file differs between hosts, or changed while the ranks started"
    if len({(batches, rows) for batches, rows, _ in ranks}) == 1:
        odd = [str(r) for r, (_, _, fingerprint) in enumerate(ranks) if fingerprint != ranks[0][2]]
        raise LorawatchError(f"rank {', '.join(odd)} read other data than rank 0", hint=hint)
    listed = ", ".join(f"rank {r}: {batches} batches of {rows} rows" for r, (batches, rows, _) in enumerate(ranks))
    raise LorawatchError(f"the ranks have different numbers of batches ({listed})", hint=hint)


def training_arguments(recipe: Recipe, output: Path, device: torch.device) -> TrainingArguments:
    """The Trainer's arguments for a recipe. The Trainer itself logs, evaluates and saves nothing.

    On a GPU the step runs in mixed precision, as the base weights' number format asks for. Under torchrun, making these
    arguments begins the process group.

    Args:
        recipe: The run's.
        output: A folder that the Trainer may write to.
        device: Where this rank trains.
    """
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
        # The reentrant kind finds no gradient to pass on below frozen layers, and DDP then counts its buckets wrongly.
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        seed=train.seed,
        bf16=cuda and recipe.model.dtype == "bfloat16",
        fp16=cuda and recipe.model.dtype == "float16",
        use_cpu=not cuda,
        # Only under torchrun: where a backend is named, accelerate expects a process group.
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
