"""The collator: pads the rows of a batch and counts their tokens on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Self

import torch

from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.data import Item
from lorawatch.training.packing import Packing, document_positions
from lorawatch.training.tokenization import IGNORED


class Collator:
    """Pads a batch to its longest row and counts its tokens on the CPU.

    A batch without padding gets no attention mask, so that the model can use its fastest attention. Packed rows get no
    mask either: their positions show where each document begins.

    Args:
        pad_id: Token id of padding. Padded positions have no label.
        counts: Gets the counts, in the order of the batches.
        packing: How the rows are packed; None: they are not.
    """

    def __init__(self, pad_id: int, counts: BatchCounts, packing: Packing | None = None) -> None:
        self._pad_id = pad_id
        self._counts = counts
        self._packing = packing

    def without_counts(self) -> Self:
        """A collator that makes the same batches and counts nothing: for rows that are not trained on."""
        twin = copy(self)
        twin._counts = BatchCounts()
        return twin

    def __call__(self, items: Sequence[Item]) -> Item:
        """A batch of rows.

        Returns:
            `input_ids`, `labels` and, where there is padding, `attention_mask`, each of shape (rows, longest row),
            INT64. For packed rows `position_ids` instead of the mask, and as many positions as a block has.
        """
        if self._packing is not None and "position_ids" in items[0]:
            return self._count(self._fill(items, (len(items), self._packing.length)), items)
        ids = [item["input_ids"] for item in items]
        labels = [item["labels"] for item in items]
        longest = max(len(row) for row in ids)
        nonpad = sum(len(row) for row in ids)
        batch: Item
        if nonpad == longest * len(ids):
            batch = {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}
        else:
            batch = {
                "input_ids": torch.full((len(ids), longest), self._pad_id),
                "attention_mask": torch.zeros((len(ids), longest), dtype=torch.long),
                "labels": torch.full((len(ids), longest), IGNORED),
            }
            for row, (tokens, learned) in enumerate(zip(ids, labels, strict=True)):
                batch["input_ids"][row, : len(tokens)] = tokens
                batch["attention_mask"][row, : len(tokens)] = 1
                batch["labels"][row, : len(tokens)] = learned
        return self._count(batch, items)

    def _fill(self, items: Sequence[Item], shape: tuple[int, int]) -> Item:
        """A batch whose rows are filled from the left.

        Args:
            items: The rows.
            shape: (rows, positions) of the batch. Rows without an item are padding.

        Returns:
            `input_ids`, `labels` and, for packed rows, `position_ids`, each of this shape, INT64.
        """
        batch = {"input_ids": torch.full(shape, self._pad_id), "labels": torch.full(shape, IGNORED)}
        for name, rows in batch.items():
            for row, item in enumerate(items):
                rows[row, : len(item[name])] = item[name]
        if self._packing is not None and "position_ids" in items[0]:
            batch["position_ids"] = document_positions(
                [item["position_ids"] for item in items], shape, self._packing.longest
            )
        return batch

    def _count(self, batch: Item, items: Sequence[Item]) -> Item:
        """The batch, after its tokens are counted."""
        rows, length = batch["labels"].shape
        nonpad = sum(len(item["input_ids"]) for item in items)
        self._counts.put((rows, length), nonpad, int((batch["labels"][:, 1:] != IGNORED).sum()))
        return batch
