"""A training step's forward and backward pass as CUDA graphs, with the face of an ordinary loss.

Thousands of small kernels start with one call. The graphs hold both passes: the forward call replays them whole, and the
loss's `backward` only hands out the gradients that are there already. So autograd, DDP, gradient accumulation and
everything else around a loss work as with any other.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorawatch.training.reduction import OverlappedAllReduce
from lorawatch.training.split_backward import Inputs, Part, StepComputation

Recorded = tuple[Tensor | None, Tensor]
"""What a part fills at each replay: the loss, where it is the first, and its gradients, one behind the other."""
Recorder = Callable[[Sequence[Callable[[], Recorded]]], list[tuple[Callable[[], None], Recorded]]]
"""Runs a computation's parts once, in turn, in a way that can be repeated in the same turn; returns for each what repeats it,
and the tensors that it fills anew."""


class GraphedLoss:
    """A loss that is computed, with its gradients, by replaying recordings.

    Args:
        passes: The loss and its gradients from inputs; touches no other state, and waits for nothing.
        inputs: Of the shapes that all batches have; copied.
        parameters: What the gradients belong to, of one dtype. Their memory must stay where it is.
        record: How to record.
    """

    def __init__(
        self, passes: StepComputation, inputs: Inputs, parameters: Sequence[nn.Parameter], record: Recorder
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._recorded = record([partial(_flattened, part, self._inputs) for part in passes.parts])
        groups = [[parameters[place] for place in group] for group in passes.groups]
        self._parameters = [parameter for group in groups for parameter in group]
        self._gradients: list[Tensor] = []
        for group, (_, (_, flat)) in zip(groups, self._recorded, strict=True):
            pieces = torch.split(flat, [p.numel() for p in group])
            self._gradients += [piece.view_as(p) for piece, p in zip(pieces, group, strict=True)]
        self.all_reduce: OverlappedAllReduce | None = None
        """Averages each part's gradients over the ranks while the next part is computed; None: they stay this rank's."""

    @property
    def bytes(self) -> int:
        """Of all gradients."""
        return sum(flat.numel() * flat.element_size() for _, (_, flat) in self._recorded)

    @property
    def parts(self) -> int:
        """How many graphs a step is."""
        return len(self._recorded)

    def accepts(self, inputs: Inputs) -> bool:
        """Whether a batch has the names and shapes of the recorded one."""
        return inputs.keys() == self._inputs.keys() and all(
            value.shape == self._inputs[name].shape for name, value in inputs.items()
        )

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss of a batch, 0-dimensional; call its `backward` before the next batch."""
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        loss: Tensor = _Replayed.apply(self, *self._parameters)  # type: ignore[no-untyped-call]
        return loss

    def forward(self) -> Tensor:
        """Replay; the loss in memory of its own, since the Trainer scales it in place."""
        for replay, (_, flat) in self._recorded:
            replay()
            if self.all_reduce is not None:
                self.all_reduce.begin(flat)
        loss = self._recorded[0][1][0]
        assert loss is not None
        return loss.clone()

    def backward(self, upstream: Tensor) -> list[Tensor]:
        """The gradients times what comes from above, in new memory, which autograd then takes without a copy."""
        if self.all_reduce is not None:
            upstream = upstream * self.all_reduce.finish()
        return list(torch._foreach_mul(self._gradients, upstream))


def _flattened(part: Part, inputs: Inputs) -> Recorded:
    loss, gradients = part(inputs)
    return loss, torch.cat([gradient.flatten() for gradient in gradients])


class _Replayed(torch.autograd.Function):
    """Ties the replay into autograd."""

    @staticmethod
    def forward(ctx: Any, graphed: GraphedLoss, *parameters: Tensor) -> Tensor:
        ctx.graphed = graphed
        return graphed.forward()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.graphed.backward(upstream[0])


def cuda_recorder(parts: Sequence[Callable[[], Recorded]]) -> list[tuple[Callable[[], None], Recorded]]:
    """Records CUDA graphs on the current stream, which must be the one that the computation was warmed up on and not
    the default one. They share their memory, so that a part finds what those before it left."""
    gc.collect()  # memory of the warm-up that cycles hold back would be reserved beside the graphs'
    pool = torch.cuda.graph_pool_handle()
    return [_captured(part, pool) for part in parts]


def _captured(part: Callable[[], Recorded], pool: Any) -> tuple[Callable[[], None], Recorded]:
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on to ask the driver what a capture in the strictest mode forbids them to ask.
    failed: Exception | None = None
    try:
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), "thread_local"):
            try:
                result = part()
            except Exception as error:
                failed = error
                raise
    except Exception:
        if failed is not None:  # ending a broken capture raises too, and not what broke it
            raise failed from None
        raise
    return graph.replay, result


@contextmanager
def aliased_parameters(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Within, the model's trained parameters are others that share their memory; yields them in the model's order.

    A graph must not meet the autograd nodes that collect the gradients of the real ones: DDP has made those on the
    default stream, which a capture may not touch, and hung its reductions on them.
    """
    doubles: dict[int, nn.Parameter] = {}
    places: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                places.append((module._parameters, name, parameter))
    try:
        for held, name, parameter in places:
            held[name] = doubles.setdefault(id(parameter), nn.Parameter(parameter.detach()))
        yield list(doubles.values())
    finally:
        for held, name, parameter in places:
            held[name] = parameter
