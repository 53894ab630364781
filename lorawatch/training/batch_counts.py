"""Token counts that the collator takes on the CPU, in the order of the batches."""

from __future__ import annotations

from collections import deque


class BatchCounts:
    """Counts of batches that are collated and not yet computed.

    The data loader runs in the training process, about one batch ahead of the model, so the first batch in is the first
    out. Each entry has its batch's shape. Where the shape of the next batch differs, the entry stays, and the batch's
    tokens are counted on the device.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[tuple[int, ...], int, int]] = deque()

    def put(self, shape: tuple[int, ...], nonpad_tokens: int, label_tokens: int) -> None:
        """Add the counts of a batch of this shape (rows, positions)."""
        self._waiting.append((shape, nonpad_tokens, label_tokens))

    def take(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Non-padding and label tokens of the next batch; None where its entry is of another shape."""
        if not self._waiting or self._waiting[0][0] != shape:
            return None
        _, nonpad, labels = self._waiting.popleft()
        return nonpad, labels

    def clear(self) -> None:
        """Remove batches that were collated and will not be computed."""
        self._waiting.clear()
