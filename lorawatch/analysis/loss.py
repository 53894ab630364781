"""One loss of several ranks: the mean over the positions that it is taken over."""

from __future__ import annotations

from collections.abc import Sequence


def loss_over_labels(loss_sums: Sequence[float], label_tokens: Sequence[int]) -> float | None:
    """Mean loss over all label tokens, whatever each part's share of them.

    Args:
        loss_sums: Summed over each part's label tokens; shape (parts,).
        label_tokens: How many each part has; shape (parts,).

    Returns:
        None where no part has a label token.
    """
    tokens = sum(label_tokens)
    return sum(loss_sums) / tokens if tokens else None


def mean_loss(losses: Sequence[float | None], label_tokens: Sequence[int | None]) -> float | None:
    """A step's loss over its ranks, weighted by their label tokens; `storage/expressions.py` has the same as SQL.

    A rank without a loss has no weight. Where no rank with a loss counts its label tokens, all weigh the same.

    Args:
        losses: A rank's mean over its own label tokens; shape (ranks,).
        label_tokens: Of each rank; shape (ranks,).

    Returns:
        None where no rank has a loss.
    """
    known = [(loss, count) for loss, count in zip(losses, label_tokens, strict=True) if loss is not None]
    counted = [(loss, count) for loss, count in known if count is not None]
    weighted = loss_over_labels([loss * count for loss, count in counted], [count for _, count in counted])
    if weighted is not None or not known:
        return weighted
    return sum(loss for loss, _ in known) / len(known)
