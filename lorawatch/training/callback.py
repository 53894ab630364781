"""`StepCallback`: measures any transformers Trainer, or TRL script, and lets `lorawatch stop` end it.

    from lorawatch import StepCallback
    trainer.add_callback(StepCallback())

Under `lorawatch --record -- python script.py` it journals every rank's steps. Without lorawatch it does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir
from lorawatch.run.records import Evaluation, Event, EventKind, Step
from lorawatch.text.numbers import rank_words
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.batch_figures import batch_figures
from lorawatch.training.facts import ModelFacts, gpu_identity, model_facts, rank_started
from lorawatch.training.meter import Reading, StepMeter
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.start_barrier import StartBarrier
from lorawatch.training.stopping import ANSWER_S, Agreement
from lorawatch.training.trainer_hooks import time_data_loader, watch_gradient_norm, watch_skipped_batches

_log = logging.getLogger(__name__)
_DISK_WAIT_S = 5.0  # for a full disk to take the last lines; short, because the user's script waits for it


class StepCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Measures each step of a Trainer, and serves `lorawatch stop` and requests for a checkpoint.

    It adds no synchronisation with the GPU and no collective to a step. It finds the run's directory in
    LORAWATCH_RUN_DIR, which the recorder sets, and its rank in torchrun's environment.

    Args:
        exclude_steps: Warm-up steps at the start of an attempt, which no figure counts.
        observer: The rank's side thread, where the caller already has one; the caller closes it.
        counts: Token counts from the collator; without them tokens are counted on the device, asynchronously.
        facts: The model's sizes, where the caller already knows them.
        gate: The barrier at which the ranks of a separate run wait before their first step.
        checkpoint_every: Steps between two checkpoints, with one more at the end; None: the Trainer's arguments decide.
        on_nan: `stop` asks all ranks to stop once this rank's loss is not a finite number; `continue` only warns.
        evaluates: Evaluate at the end; otherwise the Trainer's arguments decide.
        eval_every: Steps between two evaluations before the end; None: none.
    """

    def __init__(
        self,
        *,
        exclude_steps: int = 1,
        observer: Observer | None = None,
        counts: BatchCounts | None = None,
        facts: ModelFacts | None = None,
        gate: StartBarrier | None = None,
        checkpoint_every: int | None = None,
        on_nan: Literal["stop", "continue"] = "continue",
        evaluates: bool = False,
        eval_every: int | None = None,
    ) -> None:
        self._exclude = exclude_steps
        self._observer = observer
        self._own_observer = observer is None
        self._counts = counts
        self._facts = facts
        self._start_barrier = gate
        self._meter: StepMeter | None = None
        self._hook: Any = None
        self._gpu_uuid: str | None = None
        self._first_step = 1
        self._learning_rate: float | None = None
        self._scheduler: Any = None
        self._every = checkpoint_every
        self._on_nan = on_nan
        self._evaluates, self._eval_every = evaluates, eval_every
        self._stop_wanted = False
        self._closing = False
        self.not_finite: tuple[int, float] | None = None
        """The first step at which this rank's loss was not a finite number, and that loss; None as long as none was
        read back.
        """
        self.stopped_at: int | None = None
        """The step at which all ranks stopped on request (in a separate run: this rank)."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start measuring."""
        if self._observer is None:
            root = os.environ.get(RUN_DIR_VARIABLE)
            if not root:
                _log.info("lorawatch: %s is not set, so nothing is recorded", RUN_DIR_VARIABLE)
                return
            self._observer = Observer(RunDir(Path(root)), RankInfo.from_environment()).start()
        observer = self._observer
        device = torch.device(args.device)
        if self._facts is None and model is not None:
            self._facts = model_facts(model, getattr(args, "max_length", None))
        observer.append(rank_started(observer.rank_info, device, state.max_steps or None, self._facts))
        if self._start_barrier is not None:
            observer.phase("waiting", "until all ranks are ready")
            self._start_barrier.wait()
        observer.phase("training")
        observer.stopping.resume_from(state.global_step)
        observer.saving.resume_from(state.global_step)
        self._gpu_uuid = gpu_identity(device)[0]
        self._first_step = state.global_step + 1
        self._scheduler = lr_scheduler
        self._meter = StepMeter(device)
        if model is not None:
            self._hook = model.register_forward_hook(self._after_forward, with_kwargs=True)
        watch_gradient_norm(self._meter)
        time_data_loader(train_dataloader, self._meter, self._counts)
        watch_skipped_batches(self._meter, self._counts)
        observer.watch(self._journal_steps)
        self._meter.mark()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the learning rate of this step, before the scheduler moves on."""
        if self._meter is not None and self._scheduler is not None:
            rate = self._scheduler.get_last_lr()[0]
            self._learning_rate = rate if isinstance(rate, float) else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """End the step. Here all ranks stop on request, after the same step and with a checkpoint."""
        if self._meter is None or self._observer is None:
            return control
        step, last = state.global_step, state.max_steps
        self._meter.end_step(step, self._learning_rate)
        observer = self._observer
        separate = observer.rank_info.separate
        asked = observer.saving.step_completed(step, last)
        self._emit_unanswered(observer, observer.saving, "checkpoint_unanswered", "no checkpoint is saved")
        if asked and separate and observer.rank_info.rank == 0:
            words = "no checkpoint is saved: ranks that train separately keep none"
            observer.append(Event(at=time.time(), kind="checkpoint_refused", severity="warning", message=words))
        stops = observer.stopping.step_completed(step, last)
        self._emit_unanswered(observer, observer.stopping, "stop_unanswered", "the ranks cannot stop together")
        if stops:
            self.stopped_at = step
            control.should_training_stop = True
            # At the last step some ranks may not have seen the request, and a save needs all ranks.
            asked = step < last
        due = self._every is not None and (step % self._every == 0 or step >= last)
        if (asked or due) and not separate:
            control.should_save = True
        eval_due = self._eval_every is not None and step % self._eval_every == 0 and self.stopped_at is None
        # At the last step some ranks may not have seen a stop request, and an evaluation needs all ranks.
        if self._evaluates and (eval_due or step >= last):
            control.should_evaluate = True
        if control.should_evaluate:
            self._observer.phase("evaluating", f"after step {step}")
        elif control.should_save:
            self._observer.phase("saving", "checkpoint")
        return control

    def _emit_unanswered(self, observer: Observer, agreement: Agreement, kind: EventKind, words: str) -> None:
        """Journal which ranks did not answer a request in time."""
        silent, agreement.unanswered = agreement.unanswered, []
        if silent:
            who = rank_words(silent)
            message = (
                f"{who} did not answer within {ANSWER_S:.0f} s: {words} (is StepCallback in every rank's Trainer?)"
            )
            detail: dict[str, object] = {"ranks": silent}
            observer.append(Event(at=time.time(), kind=kind, severity="warning", message=message, detail=detail))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Journal an evaluation. Its time belongs to no step."""
        if metrics and "eval_loss" in metrics:
            self._journal_evaluation(state.global_step, metrics)
        if control.should_save and self._observer is not None:
            self._observer.phase("saving", "checkpoint")
        else:
            self._pause_ended()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint is written. Its time belongs to no step."""
        self._pause_ended()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Journal the last steps and stop measuring."""
        self.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Measure nothing within: forward passes there belong to no step."""
        meter, self._meter = self._meter, None
        try:
            yield
        finally:
            self._meter = meter

    def read_back(self) -> None:
        """Read all completed steps now. On a GPU the caller has synchronised before."""
        if self._observer is not None:
            self._observer.tick()

    def close(self) -> None:
        """Stop measuring and journal the steps that have ended. Safe to call twice."""
        if self._meter is None or self._observer is None:
            return
        if self._hook is not None:
            self._hook.remove()
        watch_gradient_norm(None)
        watch_skipped_batches(None, None)
        self._closing, self._stop_wanted = True, False  # training is over: there is nothing to stop
        self._observer.unwatch(self._journal_steps)
        self._observer.tick()  # waits for a tick that is running
        self._journal(self._meter.drain())
        self._meter = None
        if self._own_observer:
            self._observer.phase("finished")
            self._observer.close(_DISK_WAIT_S)
            self._observer = None

    def _pause_ended(self) -> None:
        if self._meter is not None and self._observer is not None:
            self._meter.mark()
            self._observer.phase("training")

    def _journal_steps(self) -> None:
        if self._meter is not None:
            self._journal(self._meter.poll())
        if self._stop_wanted and self._observer is not None:
            with contextlib.suppress(OSError):  # a full disk: the next tick tries again
                if not self._observer.run.requested("stop"):
                    self._observer.run.request("stop", b"nan_loss")
                self._stop_wanted = False

    def _journal(self, readings: list[Reading]) -> None:
        observer = self._observer
        if observer is None:
            return
        for r in readings:
            if r.loss is not None and not math.isfinite(r.loss) and self.not_finite is None:
                self._journal_bad_loss(observer, r.step, r.loss)
            observer.append(
                Step(
                    attempt=observer.rank_info.attempt,
                    rank=observer.rank_info.rank,
                    step=r.step,
                    ended_at=r.ended_at,
                    duration_s=r.duration_s,
                    tokens=r.tokens,
                    nonpad_tokens=r.nonpad_tokens,
                    label_tokens=r.label_tokens,
                    loss=r.loss,
                    grad_norm=r.grad_norm,
                    learning_rate=r.learning_rate,
                    data_wait_s=r.data_wait_s,
                    memory_allocated_bytes=r.memory_allocated_bytes,
                    memory_reserved_bytes=r.memory_reserved_bytes,
                    phase="warmup" if r.step < self._first_step + self._exclude else "train",
                    gpu_uuid=self._gpu_uuid,
                )
            )

    def _journal_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        observer = self._observer
        if observer is None or not (observer.rank_info.rank == 0 or observer.rank_info.separate):
            return
        loss, tokens = metrics["eval_loss"], metrics.get("eval_label_tokens")
        took_s = metrics.get("eval_runtime", -1.0)  # a Trainer's own loop uses the wall clock, which may be set back
        observer.append(
            Evaluation(
                attempt=observer.rank_info.attempt,
                rank=observer.rank_info.rank,
                step=step,
                ended_at=time.time(),
                duration_s=took_s if took_s >= 0 else None,
                label_tokens=None if tokens is None else int(tokens),
                loss=loss if math.isfinite(loss) else None,
            )
        )

    def _journal_bad_loss(self, observer: Observer, step: int, loss: float) -> None:
        self.not_finite = (step, loss)
        stops = self._on_nan == "stop"
        self._stop_wanted = stops and not self._closing
        observer.append(
            Event(
                at=time.time(),
                kind="nan_loss",
                severity="error" if stops else "warning",
                rank=observer.rank_info.rank,
                message=f"rank {observer.rank_info.rank}'s loss is {loss} at step {step}"
                + ("" if stops else "; training goes on"),
            )
        )

    def _after_forward(self, module: torch.nn.Module, args: Any, inputs: dict[str, Any], outputs: Any) -> None:
        """Count a training batch and keep its loss. The hook runs before the Trainer scales the loss in place."""
        meter = self._meter
        if meter is None or not module.training or not torch.is_grad_enabled():
            return
        batch = batch_figures(args, inputs, outputs, self._counts)
        if batch is not None:
            meter.add_batch(batch.tokens, nonpad=batch.nonpad, labels=batch.labels, loss_sum=batch.loss_sum)
