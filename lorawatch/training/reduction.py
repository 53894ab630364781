"""The all-reduce of a step whose gradients come at once, as replayed CUDA graphs leave them.

DDP copies each gradient into a bucket and back, with a small kernel each, so that the first gradients are exchanged
while the last are computed. Here the gradients that a graph leaves are exchanged as one tensor, and used where they are
in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FlatAllReduce:
    """Averages gradients over the ranks of the default process group with DDP's arithmetic: scaled first, then summed.

    Args:
        parameters: The trained parameters, of one device and one dtype, in the same order on every rank.
        ranks: In the group.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: int) -> None:
        self._parameters = list(parameters)
        self._sizes = [p.numel() for p in self._parameters]
        self._share = 1 / ranks

    def __call__(self) -> None:
        """Replace every gradient with the ranks' mean, of the same shape and dtype. Call it on every rank after a
        step's last backward pass.

        On a GPU the work is queued, and the host does not wait.
        """
        flat = torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).mul_(self._share)
        dist.all_reduce(flat)
        for parameter, piece in zip(self._parameters, torch.split(flat, self._sizes), strict=True):
            parameter.grad = piece.view_as(parameter)


class OverlappedAllReduce:
    """Averages parts of a step's gradients over the ranks of the default process group while other parts are computed.

    Args:
        ranks: In the group.
    """

    def __init__(self, ranks: int) -> None:
        self._share = 1 / ranks
        self._under_way: list[Any] = []

    def begin(self, piece: Tensor) -> None:
        """Start to replace gradients with the ranks' sum. They must not be used until `finish`.

        Args:
            piece: Shape (values,), floating point; of the same size on every rank.
        """
        self._under_way.append(dist.all_reduce(piece, async_op=True))

    def finish(self) -> float:
        """Let what follows wait for all sums: on a GPU what is queued there, but not the host.

        Returns:
            The factor that makes the sums means.
        """
        for work in self._under_way:
            work.wait()
        self._under_way.clear()
        return self._share
