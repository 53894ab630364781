"""The all-reduce of a step whose gradients are all there at once, as a replayed CUDA graph leaves them.

DDP copies each gradient into a bucket and back, a small kernel each, so that the first are on their way while the last
are computed. With nothing left to compute that is only overhead: here all of them go as one piece, and are used where
they lie in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


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
        self.bytes = sum(p.numel() * p.element_size() for p in self._parameters)
        """Of what goes between the ranks in a step."""

    def __call__(self) -> None:
        """Replace every gradient by the ranks' mean; after a step's last backward pass, on every rank.

        On a GPU it is queued, and the host waits for nothing.
        """
        flat = torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).mul_(self._share)
        dist.all_reduce(flat)
        for parameter, piece in zip(self._parameters, torch.split(flat, self._sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
