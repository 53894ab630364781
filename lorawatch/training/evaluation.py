"""Evaluation: the mean loss over the label tokens of rows that are never trained on, and the best adapter so far.

transformers' own loop averages the means of batches, so that a short batch counts as much as a full one, and gathers
after each batch. Here each rank sums the losses of its share of the batches, and the ranks communicate once at the end.
Training is not affected: no random number is drawn, and no hook, data loader or counter of the training is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorawatch.analysis.loss import loss_over_labels
from lorawatch.errors import LorawatchError
from lorawatch.run.adapters import BestAdapter, best_of
from lorawatch.system import folders
from lorawatch.training.adapter_saver import save_adapter
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import Item, SyntheticData, TokenizedData
from lorawatch.training.observer import Observer
from lorawatch.training.tokenization import IGNORED

# How many logits are converted to FP32 at once: 256 MB.
_MAX_FP32_LOGITS = 1 << 26
_PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class RankLoss:
    """The result of one rank's batches.

    Attributes:
        loss_sum: Sum of the losses of its label tokens, in nats; NaN or infinite where one of them is.
        label_tokens: Their number.
        cut: Why the rank did not compute all its batches; empty where it did.
    """

    loss_sum: float = 0.0
    label_tokens: int = 0
    cut: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation of all rows.

    Attributes:
        step: The step after which it was made.
        loss: Mean over all label tokens of all ranks, in nats; NaN or infinite where one of them is.
        label_tokens: Of all ranks.
        duration_s: Wall time, without the time to save a best adapter.
    """

    step: int
    loss: float
    label_tokens: int
    duration_s: float


def mean_loss(parts: Sequence[RankLoss]) -> tuple[float, int]:
    """Mean loss over the label tokens of all ranks, whatever each rank's share of them is, and their number.

    Returns:
        Nats a label token, and label tokens; the loss is NaN where there are none.
    """
    counts = [part.label_tokens for part in parts]
    loss = loss_over_labels([part.loss_sum for part in parts], counts)
    return (math.nan if loss is None else loss), sum(counts)


def check_equal_rows(ranks: Sequence[str]) -> None:
    """Check that all ranks evaluate on the same rows.

    Args:
        ranks: Each rank's fingerprint of its rows.

    Raises:
        LorawatchError: They differ; the message names the ranks.
    """
    odd = [str(rank) for rank, rows in enumerate(ranks) if rows != ranks[0]]
    if odd:
        raise LorawatchError(
            f"rank {', '.join(odd)} would evaluate on other rows than rank 0",
            hint="the data file differs between hosts, or changed while the ranks started",
        )


def rank_batches(rows: int, batch_size: int, rank: int, ranks: int) -> list[range]:
    """A rank's batches: consecutive rows, dealt to the ranks in turn.

    Each row is in one batch of one rank. No row is repeated to make batches or ranks equal.

    Args:
        rows: Rows of all ranks.
        batch_size: Rows of a batch.
        rank: This rank.
        ranks: How many share the rows.
    """
    return [range(begin, min(begin + batch_size, rows)) for begin in range(0, rows, batch_size)][rank::ranks]


def summed_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The sum of a causal model's losses over the label tokens of a batch, and their number.

    Args:
        logits: Shape (rows, positions, vocabulary), floating point. They are converted to FP32 in pieces, and only at
            labels.
        labels: Shape (rows, positions), INT64, on the CPU; `IGNORED` where there is none. The first of each row is left
            out: no position predicts it.

    Returns:
        The sum in nats, FP64 of shape (), on the logits' device; and the number of label tokens. The host does not wait
        for the device.
    """
    shifted = labels[:, 1:]
    row, position = (shifted != IGNORED).nonzero(as_tuple=True)
    wanted = shifted[row, position]
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    piece = max(_MAX_FP32_LOGITS // logits.shape[-1], 1)
    for begin in range(0, len(wanted), piece):
        rows, positions, targets = (
            index[begin : begin + piece].to(logits.device, non_blocking=True) for index in (row, position, wanted)
        )
        losses = torch.nn.functional.cross_entropy(logits[rows, positions].float(), targets, reduction="none")
        total += losses.sum(dtype=torch.float64)
    return total, len(wanted)


class Evaluator:
    """Evaluates a training between two of its steps, and keeps the adapter with the lowest loss. Every rank makes the
    same calls.

    Args:
        data: The rows.
        batch_size: Rows that a rank computes at once.
        observer: Gets events.
        tokenizer: Saved beside the best adapter.
    """

    def __init__(
        self, data: SyntheticData | TokenizedData, batch_size: int, observer: Observer, tokenizer: Any
    ) -> None:
        self._data, self._batch_size, self._observer, self._tokenizer = data, batch_size, observer, tokenizer
        self._rows: Sequence[int] = range(len(data))
        if isinstance(data, TokenizedData):
            # Rows of similar length share a batch, which saves padding. The longest come first: they need most memory.
            self._rows = sorted(self._rows, key=data.lengths.__getitem__, reverse=True)
        self._fingerprint = f"{data.fingerprint}-{len(data)}"
        self._best: BestAdapter | None = None
        if observer.rank_info.rank == 0:
            folders.recover(observer.run.best)
            self._best = self._previous_best()

    @property
    def fingerprint(self) -> str:
        """Equal for the same number of equal rows."""
        return self._fingerprint

    def evaluate(
        self,
        step: int,
        model: Any,
        collate: Callable[[Sequence[Item]], Item],
        computing: Callable[[], AbstractContextManager[Any]],
        reason: str = "",
    ) -> EvaluationResult | None:
        """Evaluate the model in its present state.

        Args:
            step: The last completed step.
            model: A PeftModel, not wrapped by DDP.
            collate: Makes a batch of rows, without counting tokens for the training.
            computing: Makes a context for a forward pass, such as autocast.
            reason: Why this rank's state must not be evaluated; empty where it may.

        Returns:
            The same on every rank that trains the model; None where a rank did not compute all its batches.
        """
        began = time.monotonic()
        rank_info = self._observer.rank_info
        own = RankLoss(cut=reason) if reason else self._rank_loss(step, model, collate, computing)
        parts = all_gather(own)
        cut = next((part.cut for part in parts if part.cut), "")
        loss, tokens = mean_loss(parts)
        result = None if cut else EvaluationResult(step, loss, tokens, time.monotonic() - began)
        if rank_info.rank == 0:
            if result is None:
                self._observer.emit_event("evaluation_cut", f"no evaluation after step {step}: {cut}")
            elif not math.isfinite(loss):
                self._observer.emit_event(
                    "evaluation_nan", f"the loss of the evaluation after step {step} is {loss}", "warning"
                )
            elif self._best is None or loss < self._best.loss or (loss == self._best.loss and step == self._best.step):
                self._save_best(result, model)
        all_gather(None)  # a barrier: the time that rank 0 takes to save belongs to no rank's next step
        return result

    def _rank_loss(
        self,
        step: int,
        model: Any,
        collate: Callable[[Sequence[Item]], Item],
        computing: Callable[[], AbstractContextManager[Any]],
    ) -> RankLoss:
        """The losses of this rank's batches."""
        rank_info, stopping = self._observer.rank_info, self._observer.stopping
        device = next(model.parameters()).device
        batches = rank_batches(
            len(self._data),
            self._batch_size,
            0 if rank_info.trains_alone else rank_info.rank,
            rank_info.model_world_size,
        )
        # PEFT's wrapper adds nothing here, and accelerate's wrapper around it would copy the logits to FP32.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        total = torch.zeros((), dtype=torch.float64, device=device)
        tokens = 0
        reported = time.monotonic()
        in_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad(), computing():
                for number, places in enumerate(batches):
                    if stopping.requested:
                        return RankLoss(cut="the run is to stop")
                    now = time.monotonic()
                    if now - reported >= _PROGRESS_EVERY_S:
                        reported = now
                        self._observer.phase("evaluating", f"after step {step}, {number} of {len(batches)} batches")
                    batch = collate([self._data[row] for row in self._rows[places.start : places.stop]])
                    labels = batch.pop("labels")
                    inputs = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                    loss, count = summed_loss(base(**inputs).logits, labels)
                    total += loss
                    tokens += count
        finally:
            for module in in_training:
                module.training = True
        return RankLoss(float(total), tokens)

    def _save_best(self, result: EvaluationResult, model: Any) -> None:
        """Save the adapter as the best. Where the disk refuses, the previous best stays, and an event says so."""
        best = BestAdapter(
            step=result.step,
            loss=result.loss,
            label_tokens=result.label_tokens,
            attempt=self._observer.rank_info.attempt,
            at=time.time(),
            data=self._fingerprint,
        )
        try:
            save_adapter(self._observer.run.best, model, self._tokenizer, best)
        except Exception as error:  # noqa: BLE001  what writing raises depends on the library that writes
            stays = f"; that of step {self._best.step} stays" if self._best is not None else ""
            words = " ".join(str(error).split())[:300] or type(error).__name__
            self._observer.emit_event(
                "best_not_saved", f"the best adapter, of step {result.step}, is not saved{stays}: {words}", "warning"
            )
        else:
            self._best = best

    def _previous_best(self) -> BestAdapter | None:
        """The best adapter of earlier attempts; None where there is none, or where its loss is of other rows."""
        best = best_of(self._observer.run)
        if best is None or best.data == self._fingerprint:
            return best
        self._observer.emit_event(
            "evaluation_rows_changed",
            f"the rows to evaluate on are not those of before: the best adapter so far (step {best.step}) is given up at "
            "the next evaluation",
            "warning",
        )
        return None
