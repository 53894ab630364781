"""Packs tokenised rows into blocks of one length: which rows share a block, what that saves, and where each begins.

A row in a block is a document: attention stays inside it, and its positions begin at 0. What no row fills of a block is
padding in documents of its own, so that every position attends to something and all numbers stay finite.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorawatch.analysis.padding import attention_span


@dataclass(frozen=True)
class Packing:
    """Which rows lie in which block.

    Attributes:
        length: Positions of every block.
        longest: Positions of the longest row.
        tokens: Positions of all rows.
        span: The sequence length at which full rows would take as much of attention, a position: `length` where each row
            fills a block, less the shorter they are. Padding attends to nothing that counts.
    """

    length: int
    longest: int
    tokens: int
    attention_span: float
    _rows: array[int] = field(repr=False)
    _ends: array[int] = field(repr=False)
    _documents: array[int] = field(repr=False)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], length: int) -> Packing:
        """Pack rows of these lengths, at least one; none is longer than a block."""
        blocks = pack_into_blocks(lengths, length)
        longest = max(lengths)
        rows, ends, max_documents = array("q"), array("q"), array("q")
        for block in blocks:
            rows.extend(block)
            ends.append(len(rows))
            padding = length - sum(lengths[row] for row in block)
            max_documents.append(len(block) + -(-padding // longest))
        span = attention_span(lengths, len(blocks) * length)
        return cls(length, longest, sum(lengths), span, rows, ends, max_documents)

    def __len__(self) -> int:
        return len(self._ends)

    def block(self, index: int) -> array[int]:
        """Its rows, in their order."""
        return self._rows[self._ends[index - 1] if index else 0 : self._ends[index]]

    @property
    def padding(self) -> float:
        """The share of all positions that no row fills."""
        return 1 - self.tokens / (len(self) * self.length)

    def max_documents(self, rows: int) -> int:
        """The most documents that a batch of so many blocks can have, padding and empty blocks included."""
        # Two a block in any case: the engine that compiles does so on blocks of two.
        least = max(-(-self.length // self.longest), 2)
        most = heapq.nlargest(rows, self._documents)
        return sum(max(n, least) for n in most) + (rows - len(most)) * least

    def layout_bytes(self) -> bytes:
        """Equal for the same rows in the same blocks."""
        return self._rows.tobytes() + self._ends.tobytes()


def pack_into_blocks(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Pack rows into few blocks: long ones by best-fit decreasing, as TRL's `bfd` does; short ones, up to an eighth of a
    block, each into the emptiest.

    By best fit the shortest rows come to lie together, hundreds of them in a few blocks. Attention of fixed shape takes
    time and memory for as many documents as a batch can ever have, so those few would cost every batch. Dealt out they
    fill all blocks alike, for which one block in a hundred more leaves room.

    Args:
        lengths: Positions of each row, from 1 to `length`.
        length: Positions of a block.

    Returns:
        The rows' indices of each block, in which they are in order of length.
    """
    blocks = _Blocks(length)
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    long = next((place for place, row in enumerate(rows) if 8 * lengths[row] <= length), len(rows))
    for row in rows[:long]:
        blocks.put(row, lengths[row], blocks.tightest(lengths[row]))
    wanted = -(-sum(lengths) // length)
    blocks.open(wanted + wanted // 100 - len(blocks.rows))
    for row in rows[long:]:
        blocks.put(row, lengths[row], blocks.emptiest(lengths[row]))
    return [block for block in blocks.rows if block]


class _Blocks:
    """Blocks that are being filled.

    Their free positions are the bits of one number, in which the smallest that suffices and the largest are found at once:
    a million rows take seconds. Of several blocks with as many the one that has waited longest is taken.
    """

    def __init__(self, length: int) -> None:
        self.rows: list[list[int]] = []
        self._length = length
        self._waiting: dict[int, deque[list[int]]] = {}
        self._spaces = 0

    def tightest(self, size: int) -> int:
        """The fewest free positions of a block that suffice."""
        fitting = self._spaces >> size
        return size + (fitting & -fitting).bit_length() - 1 if fitting else self._length

    def emptiest(self, size: int) -> int:
        """The most free positions of a block, if they suffice, or else a new block's."""
        return self._spaces.bit_length() - 1 if self._spaces >> size else self._length

    def put(self, row: int, size: int, space: int) -> None:
        """Put a row into a block with so many free positions; a new one where all are wanted and no block has them."""
        if not self._waiting.get(space):
            self.open(1)
        queue = self._waiting[space]
        block = queue.popleft()
        if not queue:
            self._spaces ^= 1 << space
        block.append(row)
        self._leave(block, space - size)

    def open(self, number: int) -> None:
        """So many empty blocks more."""
        for _ in range(number):
            self.rows.append([])
            self._leave(self.rows[-1], self._length)

    def _leave(self, block: list[int], space: int) -> None:
        if space:
            self._waiting.setdefault(space, deque()).append(block)
            self._spaces |= 1 << space


def document_positions(max_documents: Sequence[Tensor], shape: tuple[int, int], longest: int) -> Tensor:
    """Positions of a batch, each within its document.

    Args:
        documents: Positions of what fills each block from the left; blocks beyond these are empty.
        shape: Blocks, positions of each.
        longest: No document of padding is longer.

    Returns:
        Whole numbers of that shape.
    """
    rows, length = shape
    padding = torch.arange(length) % longest
    found = padding.repeat(rows, 1)
    for row, filled in enumerate(max_documents):
        found[row, : len(filled)] = filled
        found[row, len(filled) :] = padding[: length - len(filled)]
    return found


def cumulative_lengths(position_ids: Tensor, max_documents: int) -> Tensor:
    """Where the documents of a batch begin, block after block, as variable-length attention takes it.

    Args:
        position_ids: Of the batch; 0 where a document begins.
        documents: How many there can be. Those that there are not begin and end where the batch ends.

    Returns:
        INT32 of shape (documents + 1,), the last the number of positions.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    found = torch.full((max_documents + 1,), position_ids.numel(), dtype=torch.int32)
    found[: len(starts)] = starts
    return found
