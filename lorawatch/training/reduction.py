"""The all-reduce of a step whose gradients come many at once, as replayed CUDA graphs leave them.

DDP copies each gradient into a bucket and back, a small kernel each, so that the first are on their way while the last
are computed. Here the gradients that a graph leaves go as one piece, and are used where they lie in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatAllReduce:
    """Averages gradients over the ranks of the default process group, in DDP's arithmetic: scaled, then summed.

    Args:
        parameters: What is trained; of one device and one dtype, in the same order on every rank.
        ranks: In the group.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: int) -> None:
        self._parameters = list(parameters)
        self._sizes = [p.numel() for p in self._parameters]
        self._share = 1 / ranks

    def __call__(self) -> None:
        """Replace every gradient by the ranks' mean; after a step's last backward pass, on every rank.

        On a GPU it is queued, and the host waits for nothing.
        """
        flat = torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).mul_(self._share)
        dist.all_reduce(flat)
        for parameter, piece in zip(self._parameters, torch.split(flat, self._sizes), strict=True):
            parameter.grad = piece.view_as(parameter)


class OverlappedAllReduce:
    """Averages pieces of a step's gradients over the ranks of the default process group while others are computed.

    Args:
        ranks: In the group.
    """

    def __init__(self, ranks: int) -> None:
        self._share = 1 / ranks
        self._under_way: list[Any] = []

    def begin(self, piece: Tensor) -> None:
        """Have a piece replaced by the ranks' sum, of the same size on every rank; leave it alone until `finish`."""
        self._under_way.append(dist.all_reduce(piece, async_op=True))

    def finish(self) -> float:
        """Have what follows wait for all pieces: on a GPU what is queued there, and not the host.

        Returns:
            What the sums are to be multiplied by.
        """
        for work in self._under_way:
            work.wait()
        self._under_way.clear()
        return self._share
