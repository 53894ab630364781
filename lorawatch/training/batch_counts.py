"""Token counts that the collator takes on the CPU, handed to the measuring in the order of the batches."""

from __future__ import annotations

from collections import deque


class BatchCounts:
    """Counts of collated batches that are not computed yet.

    The data loader runs in the training process, one batch or so ahead of the model, so first in is first out. A
    batch's shape comes with its counts and is compared: after any surprise the counts are left alone and the batch is
    counted on the device.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[tuple[int, ...], int, int]] = deque()

    def put(self, shape: tuple[int, ...], nonpad_tokens: int, label_tokens: int) -> None:
        """Counts of a batch of this shape (rows, positions)."""
        self._waiting.append((shape, nonpad_tokens, label_tokens))

    def take(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Non-padding and label tokens of the next batch; None where they do not belong to a batch of this shape."""
        if not self._waiting or self._waiting[0][0] != shape:
            return None
        _, nonpad, labels = self._waiting.popleft()
        return nonpad, labels

    def clear(self) -> None:
        """Forget batches that were collated and never computed."""
        self._waiting.clear()
