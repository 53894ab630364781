"""Padding and attention spans of batches whose rows have different lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def padding_to_longest(lengths: Sequence[int], rows: int) -> float:
    """The expected share of padding where random batches are padded to their longest row.

    A batch is a sample of r rows without replacement. With the n rows in order of length, row i is the longest of a batch
    with probability C(i - 1, r - 1) / C(n, r): the distribution of a sample's maximum (David & Nagaraja, Order Statistics,
    3rd edition, section 3.7).

    Args:
        lengths: Positions of each row; at least one row.
        rows: Rows of a batch.

    Returns:
        From 0 to 1: padding positions over all positions.
    """
    rows = min(rows, len(lengths))
    probability, longest = rows / len(lengths), 0.0
    for rank, length in zip(range(len(lengths), rows - 1, -1), sorted(lengths, reverse=True), strict=False):
        longest += probability * length
        probability *= (rank - rows) / max(rank - 1, 1)
    return max(1 - sum(lengths) / len(lengths) / longest, 0.0)


def attention_span(lengths: Iterable[int], positions: int) -> float:
    """The sequence length at which full rows cost as much attention a position as these documents do.

    Causal attention inside a document of n positions costs n² / 2 scores, so Σ n² / positions is the length s whose full
    rows cost s / 2 scores a position. It is the s of `flops.lora_flops_per_token`. Padding costs nothing that counts.

    Args:
        lengths: Positions of each document.
        positions: Positions computed, padding included.

    Returns:
        Positions.
    """
    return sum(n * n for n in lengths) / positions
