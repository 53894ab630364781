"""Packing as arithmetic: which rows share a block, what that saves, where documents begin."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.analysis.padding import padding_to_longest
from lorawatch.training.packing import Packing, cumulative_lengths, document_positions, pack_into_blocks


def naive(lengths: list[int], length: int) -> int:
    """Blocks that best-fit decreasing takes, by looking at every block."""
    spaces: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else length) - size)
    return len(spaces)


@given(
    st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1, max_size=200)))
)
def test_every_row_is_in_one_block_and_none_is_overfull(case: tuple[int, list[int]]) -> None:
    length, lengths = case
    blocks = pack_into_blocks(lengths, length)
    assert sorted(itertools.chain(*blocks)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in block) <= length for block in blocks)
    assert blocks == pack_into_blocks(lengths, length)
    long = [size for size in lengths if 8 * size > length]
    full = math.ceil(sum(lengths) / length)
    # A short row that finds no room leaves every block filled to more than seven eighths.
    assert len(blocks) <= max(naive(long, length), full + full // 100, math.ceil(8 / 7 * full))
    if len(long) == len(lengths):
        assert len(blocks) == naive(lengths, length)


def chats(rows: int, length: int) -> list[int]:
    """Of many short conversations and some very long ones."""
    draw = random.Random(0)
    return [min(int(draw.lognormvariate(5, 1)) + 2, length) for _ in range(rows)]


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_hardly_any_padding_and_no_block_of_far_more_documents_than_others(length: int) -> None:
    packing = Packing.from_lengths(chats(20_000, length), length)
    assert 0 <= packing.padding < 0.015
    usual = 20_000 / len(packing)
    assert packing.max_documents(8) < 8 * max(2.5 * usual, 14)  # by best fit alone, 40 to 640 a block


def test_hundreds_of_thousands_of_rows_are_packed_in_seconds() -> None:
    lengths = chats(300_000, 4096)
    began = time.process_time()
    pack_into_blocks(lengths, 4096)
    assert time.process_time() - began < 6  # here 0.4 s; by looking at every block, hours


def test_the_padding_of_batches_by_all_batches_that_there_can_be() -> None:
    lengths = [3, 9, 9, 2, 5, 7, 1, 4]
    for rows in (1, 2, 3, 8):
        longest = [max(batch) for batch in itertools.combinations(lengths, rows)]
        expected = 1 - sum(lengths) / len(lengths) / (sum(longest) / len(longest))
        assert padding_to_longest(lengths, rows) == pytest.approx(expected)
    assert padding_to_longest(lengths, 1) == 0
    assert padding_to_longest(lengths, 50) == padding_to_longest(lengths, 8)


def test_what_a_packing_tells() -> None:
    packing = Packing.from_lengths([5, 3, 2, 5, 1], 8)
    assert [list(packing.block(i)) for i in range(len(packing))] == [[0, 1], [3, 2, 4]]
    assert (packing.longest, packing.tokens, packing.padding) == (5, 16, 0)
    assert packing.attention_span == (25 + 9 + 4 + 25 + 1) / 16
    assert packing.max_documents(1) == 3
    assert packing.max_documents(2) == 2 + 3
    assert packing.max_documents(3) == 2 + 3 + 2  # an empty block is padding in documents of up to 5
    whole = Packing.from_lengths([8] * 4, 8)
    assert (whole.attention_span, whole.padding) == (8, 0)
    assert Packing.from_lengths([5, 3], 8).layout_bytes() != Packing.from_lengths([3, 5], 8).layout_bytes()


def test_positions_begin_anew_with_each_document_and_in_padding() -> None:
    batch = document_positions([torch.tensor([0, 1, 2, 0, 1])], (2, 9), longest=3)
    assert batch.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2, 0, 1, 2]]
    cumulative = cumulative_lengths(batch, 9)
    assert cumulative.dtype == torch.int32
    assert cumulative.tolist() == [0, 3, 5, 8, 9, 12, 15, 18, 18, 18]


@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(1, 5), st.randoms())
def test_no_batch_has_more_documents_than_are_foreseen_nor_longer_ones(
    lengths: list[int], rows: int, draw: random.Random
) -> None:
    packing = Packing.from_lengths(lengths, 16)
    batch = draw.sample(range(len(packing)), min(rows, len(packing)))
    filled = [torch.cat([torch.arange(lengths[row]) for row in packing.block(block)]) for block in batch]
    batch = document_positions(filled, (rows, 16), packing.longest)
    cumulative = cumulative_lengths(batch, packing.max_documents(rows))
    sizes = cumulative.diff()
    assert int(sizes.max()) <= packing.longest
    assert int(sizes.sum()) == rows * 16
    starts = batch.flatten() == 0
    assert bool(starts[cumulative[:-1][sizes > 0]].all())
    assert int(starts.sum()) == int((sizes > 0).sum())
