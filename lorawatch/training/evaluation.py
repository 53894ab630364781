"""Evaluation: the mean loss over the label tokens of rows that are never trained on, and the best adapter so far.

transformers' own loop averages the means of batches, counts a short batch as much as a full one, and gathers after each.
Here each rank sums the losses of its share of the batches, and the ranks speak to each other when it is over. Training
does not notice: no random number is drawn, and no hook, data loader or counter of the training takes part.
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

from lorawatch.errors import LorawatchError
from lorawatch.run.adapters import BestAdapter, best_of
from lorawatch.system import folders
from lorawatch.training.adapter_saver import save_adapter
from lorawatch.training.collectives import all_gather
from lorawatch.training.data import Item, SyntheticData, TokenizedData
from lorawatch.training.observer import Observer
from lorawatch.training.tokenization import IGNORED

# Logits of how many positions are widened to FP32 at once: 256 MB of them.
_MAX_FP32_LOGITS = 1 << 26
_PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class RankLoss:
    """What one rank's batches came to.

    Attributes:
        loss_sum: Over its label tokens; NaN or infinite where one's loss is.
        cut: Why it has not seen all its batches; empty where it has.
    """

    loss_sum: float = 0.0
    label_tokens: int = 0
    cut: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation that saw all its rows.

    Attributes:
        loss: Mean over all label tokens of all ranks; NaN or infinite where one's loss is.
        duration_s: Wall time, without the saving of a best adapter.
    """

    step: int
    loss: float
    label_tokens: int
    duration_s: float


def mean_loss(parts: Sequence[RankLoss]) -> tuple[float, int]:
    """Mean loss over all ranks' label tokens, whatever each one's share of them, and their number; NaN of none."""
    tokens = sum(part.label_tokens for part in parts)
    total = sum(part.loss_sum for part in parts)
    return (total / tokens if tokens else math.nan), tokens


def check_equal_rows(ranks: Sequence[str]) -> None:
    """See that all ranks evaluate on the same rows.

    Args:
        ranks: Each rank's fingerprint of them.

    Raises:
        LorawatchError: They differ; says whose.
    """
    odd = [str(rank) for rank, rows in enumerate(ranks) if rows != ranks[0]]
    if odd:
        raise LorawatchError(
            f"rank {', '.join(odd)} would evaluate on other rows than rank 0",
            hint="the data file differs between hosts, or changed meanwhile",
        )


def rank_batches(rows: int, batch_size: int, rank: int, ranks: int) -> list[range]:
    """A rank's batches of consecutive places, dealt in turn: each row is in one batch of one rank, none is repeated to make
    batches or ranks even."""
    return [range(begin, min(begin + batch_size, rows)) for begin in range(0, rows, batch_size)][rank::ranks]


def summed_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The sum of a causal model's losses over the label tokens of a batch, and their number.

    Args:
        logits: Of shape (rows, positions, vocabulary). Widened to FP32 in pieces, and only where there is a label.
        labels: Of shape (rows, positions), on the CPU; `IGNORED` where there is none. A row's first is nobody's prediction.

    Returns:
        The sum, FP64 and 0-dimensional, on the logits' device; nothing waits for it.
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
    """Evaluates a training between two of its steps, and keeps the adapter with the lowest loss; the same calls on every
    rank that trains.

    Args:
        data: The rows.
        batch_size: Rows that a rank computes at once.
        observer: Tells what happens.
        tokenizer: Saved beside the best adapter.
    """

    def __init__(
        self, data: SyntheticData | TokenizedData, batch_size: int, observer: Observer, tokenizer: Any
    ) -> None:
        self._data, self._batch_size, self._observer, self._tokenizer = data, batch_size, observer, tokenizer
        self._rows: Sequence[int] = range(len(data))
        if isinstance(data, TokenizedData):
            # Rows of one length share a batch, so that little is padded; the longest first, which take most memory.
            self._rows = sorted(self._rows, key=data.lengths.__getitem__, reverse=True)
        self._fingerprint = f"{data.fingerprint}-{len(data)}"
        self._best: BestAdapter | None = None
        if observer.rank_info.rank == 0:
            folders.recover(observer.run.best)
            self._best = self._previous_best()

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows, and as many."""
        return self._fingerprint

    def evaluate(
        self,
        step: int,
        model: Any,
        collate: Callable[[Sequence[Item]], Item],
        computing: Callable[[], AbstractContextManager[Any]],
        broken: str = "",
    ) -> EvaluationResult | None:
        """Evaluate the model as it stands.

        Args:
            step: The step that is done.
            model: With its adapter, not wrapped by DDP.
            collate: Makes a batch of rows; counts nothing that the training counts.
            computing: What a forward pass needs around it, such as autocast.
            broken: Why this rank's state is not worth it; empty where nothing is.

        Returns:
            The same on every rank that trains together; None where a rank's part was cut short.
        """
        began = time.monotonic()
        rank_info = self._observer.rank_info
        mine = RankLoss(cut=broken) if broken else self._rank_loss(step, model, collate, computing)
        parts = all_gather(mine)
        cut = next((part.cut for part in parts if part.cut), "")
        loss, tokens = mean_loss(parts)
        found = None if cut else EvaluationResult(step, loss, tokens, time.monotonic() - began)
        if rank_info.rank == 0:
            if found is None:
                self._observer.emit_event("evaluation_cut", f"no evaluation after step {step}: {cut}")
            elif not math.isfinite(loss):
                self._observer.emit_event(
                    "evaluation_nan", f"the loss of the evaluation after step {step} is {loss}", "warning"
                )
            elif self._best is None or loss < self._best.loss or (loss == self._best.loss and step == self._best.step):
                self._save_best(found, model)
        all_gather(None)  # so that no rank's next step waits for the disk of rank 0
        return found

    def _rank_loss(
        self,
        step: int,
        model: Any,
        collate: Callable[[Sequence[Item]], Item],
        computing: Callable[[], AbstractContextManager[Any]],
    ) -> RankLoss:
        rank_info, stopping = self._observer.rank_info, self._observer.stopping
        device = next(model.parameters()).device
        batches = rank_batches(
            len(self._data),
            self._batch_size,
            0 if rank_info.trains_alone else rank_info.rank,
            rank_info.model_world_size,
        )
        # PEFT's wrapper adds nothing here, and what accelerate has put around it would copy the logits to FP32.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        total = torch.zeros((), dtype=torch.float64, device=device)
        tokens = 0
        told = time.monotonic()
        in_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad(), computing():
                for number, places in enumerate(batches):
                    if stopping.requested:
                        return RankLoss(cut="the run is to stop")
                    now = time.monotonic()
                    if now - told >= _PROGRESS_EVERY_S:
                        told = now
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

    def _save_best(self, found: EvaluationResult, model: Any) -> None:
        """Save the adapter as the best; one that the disk refuses costs itself."""
        best = BestAdapter(
            step=found.step,
            loss=found.loss,
            label_tokens=found.label_tokens,
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
                "best_not_saved", f"the best adapter, of step {found.step}, is not saved{stays}: {words}", "warning"
            )
        else:
            self._best = best

    def _previous_best(self) -> BestAdapter | None:
        """The best of earlier attempts; None where there is none, or none that could be compared."""
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
