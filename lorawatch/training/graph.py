"""A training step's forward and backward pass as CUDA graphs, used like any other loss.

Thousands of small kernels start with one call. The graphs hold both passes: the forward call replays them completely, and
the loss's `backward` only hands out gradients that are already computed. So autograd, DDP, gradient accumulation and
everything else around a loss work as they do without graphs.
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
"""The tensors that a part fills at each replay: the loss of shape (), from the first part only, and its gradients,
flattened and concatenated in shape (values,).
"""
Recorder = Callable[[Sequence[Callable[[], Recorded]]], list[tuple[Callable[[], None], Recorded]]]
"""Runs a computation's parts once, in order, so that they can be repeated in that order. Returns for each part a
function that repeats it, and the tensors that it fills.
"""


class GraphedLoss:
    """A loss that is computed, with its gradients, by replaying recordings.

    Args:
        passes: Computes the loss and its gradients from inputs. It must not change other state, nor wait for the device.
        inputs: A batch of the shapes that all batches have; it is copied.
        parameters: The gradients' parameters, of one dtype. Their memory must not move.
        record: Records the parts.
    """

    def __init__(
        self, passes: StepComputation, inputs: Inputs, parameters: Sequence[nn.Parameter], record: Recorder
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._recorded = record([partial(_flattened, part, self._inputs) for part in passes.parts])
        groups = [[parameters[index] for index in group] for group in passes.groups]
        self._parameters = [parameter for group in groups for parameter in group]
        self._gradients: list[Tensor] = []
        for group, (_, (_, flat)) in zip(groups, self._recorded, strict=True):
            pieces = torch.split(flat, [p.numel() for p in group])
            self._gradients += [piece.view_as(p) for piece, p in zip(pieces, group, strict=True)]
        self.all_reduce: OverlappedAllReduce | None = None
        """Averages each part's gradients over the ranks while the next part is computed; None: the gradients stay this
        rank's.
        """

    @property
    def bytes(self) -> int:
        """Size of all gradients."""
        return sum(flat.numel() * flat.element_size() for _, (_, flat) in self._recorded)

    @property
    def parts(self) -> int:
        """How many graphs a step is."""
        return len(self._recorded)

    def accepts(self, inputs: Inputs) -> bool:
        """Whether a batch has the names and shapes of the recorded batch."""
        return inputs.keys() == self._inputs.keys() and all(
            value.shape == self._inputs[name].shape for name, value in inputs.items()
        )

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss of a batch, of shape (), in the model's dtype for losses. Call its `backward` before the next batch."""
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        loss: Tensor = _Replayed.apply(self, *self._parameters)  # type: ignore[no-untyped-call]
        return loss

    def forward(self) -> Tensor:
        """Replay. The loss, of shape (), is in new memory, because the Trainer scales it in place."""
        for replay, (_, flat) in self._recorded:
            replay()
            if self.all_reduce is not None:
                self.all_reduce.begin(flat)
        loss = self._recorded[0][1][0]
        assert loss is not None
        return loss.clone()

    def backward(self, upstream: Tensor) -> list[Tensor]:
        """The gradients times the gradient from above.

        Args:
            upstream: Shape (), of the loss's dtype.

        Returns:
            One tensor a parameter, of its shape and dtype, in new memory, which autograd takes without a copy.
        """
        if self.all_reduce is not None:
            upstream = upstream * self.all_reduce.finish()
        return list(torch._foreach_mul(self._gradients, upstream))


def _flattened(part: Part, inputs: Inputs) -> Recorded:
    """A part's loss, and its gradients flattened and concatenated."""
    loss, gradients = part(inputs)
    return loss, torch.cat([gradient.flatten() for gradient in gradients])


class _Replayed(torch.autograd.Function):
    """Connects the replay to autograd."""

    @staticmethod
    def forward(ctx: Any, graphed: GraphedLoss, *parameters: Tensor) -> Tensor:
        """The loss, of shape ()."""
        ctx.graphed = graphed
        return graphed.forward()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The parameters' gradients, each of its parameter's shape; `upstream` is one tensor of shape ()."""
        return None, *ctx.graphed.backward(upstream[0])


def cuda_recorder(parts: Sequence[Callable[[], Recorded]]) -> list[tuple[Callable[[], None], Recorded]]:
    """Record CUDA graphs on the current stream.

    The computation must have been warmed up on that stream, and it must not be the default stream. The graphs share their
    memory, so that a part can read what the parts before it have computed.

    Raises:
        Exception: What a part raised while it was captured.
    """
    gc.collect()  # otherwise warm-up memory held by reference cycles would stay reserved beside the graphs'
    pool = torch.cuda.graph_pool_handle()
    return [_captured(part, pool) for part in parts]


def _captured(part: Callable[[], Recorded], pool: Any) -> tuple[Callable[[], None], Recorded]:
    """Capture a part as a graph.

    Returns:
        What replays it, and the tensors that it fills.
    """
    graph = torch.cuda.CUDAGraph()
    # "thread_local": in the strictest mode other threads could not query the driver during a capture.
    failed: Exception | None = None
    try:
        with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), "thread_local"):
            try:
                result = part()
            except Exception as error:
                failed = error
                raise
    except Exception:
        if failed is not None:  # ending a broken capture raises an error of its own, which hides the cause
            raise failed from None
        raise
    return graph.replay, result


@contextmanager
def aliased_parameters(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Within, replace the model's trained parameters with others that share their memory; yields them in the model's
    order.

    A graph must not touch the autograd nodes that accumulate the gradients of the real parameters. DDP has made those
    nodes on the default stream, which a capture must not use, and has attached its reductions to them.
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
