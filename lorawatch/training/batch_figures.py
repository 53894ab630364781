"""What a forward pass of a training step says of its batch: token counts and the sum of its token losses.

Nothing here waits for the GPU: counts that are not known on the CPU stay tensors on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.tokenization import IGNORED


@dataclass(frozen=True)
class BatchFigures:
    """Figures of one batch.

    Attributes:
        tokens: Positions, padding included.
        nonpad: Positions that hold a token: a number, or an INT64 tensor of shape () on the device.
        labels: Positions that the loss is taken over, likewise; None where the batch has no labels.
        loss_sum: Sum of the token losses, FP32 of shape () on the device; None where the loss cannot be read.
    """

    tokens: int
    nonpad: torch.Tensor | int
    labels: torch.Tensor | int | None
    loss_sum: torch.Tensor | None


def batch_figures(args: Any, inputs: dict[str, Any], outputs: Any, counts: BatchCounts | None) -> BatchFigures | None:
    """The figures of a forward pass.

    Args:
        args: Positional arguments of the model's forward.
        inputs: Its keyword arguments: `input_ids` of shape (rows, positions), INT64, and what comes with them.
        outputs: What it returned.
        counts: Token counts that the collator took; None: the tokens are counted on the device.

    Returns:
        None where the pass has no token ids.
    """
    ids = inputs.get("input_ids")
    if ids is None and args:
        ids = args[0]
    if not isinstance(ids, torch.Tensor):
        return None
    nonpad: torch.Tensor | int
    labels: torch.Tensor | int | None
    counted = counts.take(tuple(ids.shape)) if counts is not None else None
    if counted is not None:
        nonpad, labels = counted
    else:
        mask = inputs.get("attention_mask")
        nonpad = mask.count_nonzero() if isinstance(mask, torch.Tensor) and mask.shape == ids.shape else ids.numel()
        labels = _count_labels(inputs)
    return BatchFigures(ids.numel(), nonpad, labels, _loss_sum(inputs, outputs, labels))


def _count_labels(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Positions that a causal model's loss is taken over. A row's first label is left out: no position predicts it.

    Args:
        inputs: With `labels` of shape (rows, positions), or `shift_labels`, INT64.

    Returns:
        INT64 of shape () on the labels' device; None where there are no labels.
    """
    shifted = inputs.get("shift_labels")
    if not isinstance(shifted, torch.Tensor):
        labels = inputs.get("labels")
        if not isinstance(labels, torch.Tensor) or labels.dim() < 2:
            return None
        shifted = labels[..., 1:]
    return (shifted != IGNORED).sum()


def _loss_sum(inputs: dict[str, Any], outputs: Any, labels: torch.Tensor | int | None) -> torch.Tensor | None:
    """The sum of a batch's token losses: the model's loss times what the model divided by.

    Given `num_items_in_batch` (the label tokens of all micro-batches and ranks) the model divides the sum by it, and
    otherwise by its own label tokens.

    Args:
        inputs: Keyword arguments of the model's forward.
        outputs: With the loss, a floating-point tensor of shape ().
        labels: Label tokens of the batch.

    Returns:
        FP32 of shape (), detached; None where the loss or its divisor is not a single number.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    divisor = inputs.get("num_items_in_batch")
    if divisor is None:
        divisor = labels
    if not isinstance(loss, torch.Tensor) or loss.dim() or divisor is None:
        return None
    if isinstance(divisor, torch.Tensor) and divisor.dim():
        return None
    return loss.detach().float() * divisor
