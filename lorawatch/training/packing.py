"""Packs tokenised rows into blocks of one length: which rows share a block, what that saves, and where each row begins.

A row in a block is a document: attention stays inside it, and its positions begin at 0. Positions of a block that no row
fills are padding, in documents of their own, so that every position attends to something and all numbers stay finite.
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
    """Which rows are in which block.

    Attributes:
        length: Positions of every block.
        longest: Positions of the longest row.
        tokens: Positions of all rows.
        attention_span: As `analysis.padding.attention_span`: `length` where each row fills a block, and less for
            shorter rows.
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
        """Pack rows of these lengths: at least one row, none longer than a block."""
        blocks = pack_into_blocks(lengths, length)
        longest = max(lengths)
        rows, ends, documents = array("q"), array("q"), array("q")
        for block in blocks:
            rows.extend(block)
            ends.append(len(rows))
            padding = length - sum(lengths[row] for row in block)
            documents.append(len(block) + -(-padding // longest))
        span = attention_span(lengths, len(blocks) * length)
        return cls(length, longest, sum(lengths), span, rows, ends, documents)

    def __len__(self) -> int:
        return len(self._ends)

    def block(self, index: int) -> array[int]:
        """A block's rows, in their order."""
        return self._rows[self._ends[index - 1] if index else 0 : self._ends[index]]

    @property
    def padding(self) -> float:
        """The share of all positions that no row fills."""
        return 1 - self.tokens / (len(self) * self.length)

    def max_documents(self, rows: int) -> int:
        """The most documents that a batch of so many blocks can have, padding and empty blocks included."""
        # At least two a block, because the fast engine compiles on blocks of two documents.
        least = max(-(-self.length // self.longest), 2)
        most = heapq.nlargest(rows, self._documents)
        return sum(max(n, least) for n in most) + (rows - len(most)) * least

    def layout_bytes(self) -> bytes:
        """Equal for the same rows in the same blocks."""
        return self._rows.tobytes() + self._ends.tobytes()


def pack_into_blocks(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Pack rows into few blocks.

    Long rows are packed by best-fit decreasing, as TRL's `bfd` strategy does. Short rows, up to an eighth of a block,
    each go to the block with the most room. By best fit the shortest rows would share a few blocks, hundreds in each.
    Attention of fixed shape takes time and memory for as many documents as any batch can have, so those few blocks
    would cost every batch. Dealt out, the short rows fill all blocks equally; this needs one block in a hundred more.

    Args:
        lengths: Positions of each row, from 1 to `length`.
        length: Positions of a block.

    Returns:
        The indices of each block's rows, the longest first.
    """
    blocks = _Blocks(length)
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    long = next((index for index, row in enumerate(rows) if 8 * lengths[row] <= length), len(rows))
    for row in rows[:long]:
        blocks.put(row, lengths[row], blocks.tightest(lengths[row]))
    wanted = -(-sum(lengths) // length)
    blocks.open(wanted + wanted // 100 - len(blocks.rows))
    for row in rows[long:]:
        blocks.put(row, lengths[row], blocks.emptiest(lengths[row]))
    return [block for block in blocks.rows if block]


class _Blocks:
    """Blocks that are being filled.

    The bits of one number are the sizes of free space that some block has. The smallest size that fits, and the
    largest, are found by bit operations, so that a million rows take seconds. Of several blocks with the same free
    space, the one that has waited longest is used.
    """

    def __init__(self, length: int) -> None:
        self.rows: list[list[int]] = []
        self._length = length
        self._waiting: dict[int, deque[list[int]]] = {}
        self._spaces = 0

    def tightest(self, size: int) -> int:
        """The smallest free space that fits; a new block's where none does."""
        fitting = self._spaces >> size
        return size + (fitting & -fitting).bit_length() - 1 if fitting else self._length

    def emptiest(self, size: int) -> int:
        """The largest free space, if it fits; otherwise a new block's."""
        return self._spaces.bit_length() - 1 if self._spaces >> size else self._length

    def put(self, row: int, size: int, space: int) -> None:
        """Put a row into a block with this much free space. Where no block has it, it is a new block's."""
        if not self._waiting.get(space):
            self.open(1)
        queue = self._waiting[space]
        block = queue.popleft()
        if not queue:
            self._spaces ^= 1 << space
        block.append(row)
        self._leave(block, space - size)

    def open(self, number: int) -> None:
        """Add empty blocks."""
        for _ in range(number):
            self.rows.append([])
            self._leave(self.rows[-1], self._length)

    def _leave(self, block: list[int], space: int) -> None:
        if space:
            self._waiting.setdefault(space, deque()).append(block)
            self._spaces |= 1 << space


def document_positions(documents: Sequence[Tensor], shape: tuple[int, int], longest: int) -> Tensor:
    """Positions of a batch, each counted from the beginning of its document.

    Args:
        documents: For each block the positions of its rows, from the left: shape (positions of its rows,), INT64.
            Blocks without an entry are empty.
        shape: Blocks, and positions of each.
        longest: No document of padding is longer.

    Returns:
        INT64 of this shape.
    """
    rows, length = shape
    padding = torch.arange(length) % longest
    batch = padding.repeat(rows, 1)
    for row, filled in enumerate(documents):
        batch[row, : len(filled)] = filled
        batch[row, len(filled) :] = padding[: length - len(filled)]
    return batch


def cumulative_lengths(position_ids: Tensor, documents: int) -> Tensor:
    """Where the documents of a batch begin, block after block, as variable-length attention takes it.

    Args:
        position_ids: Of the batch, shape (blocks, positions), INT64; 0 where a document begins.
        documents: How many a batch can have. Those that this batch does not have begin and end where the batch ends.

    Returns:
        INT32 of shape (documents + 1,); the last value is the number of positions.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    cumulative = torch.full((documents + 1,), position_ids.numel(), dtype=torch.int32)
    cumulative[: len(starts)] = starts
    return cumulative
