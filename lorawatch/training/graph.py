"""A training step's forward and backward pass as one CUDA graph, with the face of an ordinary loss.

Thousands of small kernels start with one call. The graph holds both passes: the forward call replays it whole, and the
loss's `backward` only hands out the gradients that are there already. So autograd, DDP, gradient accumulation and
everything else around a loss work as with any other.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
Passes = tuple[Tensor, Sequence[Tensor]]
"""The loss, and its gradients."""
Recorder = Callable[[Callable[[], Passes]], tuple[Callable[[], None], Passes]]
"""Runs a computation once in a way that can be repeated; returns what repeats it, and the tensors that it fills anew."""


class GraphedLoss:
    """A loss that is computed, with its gradients, by replaying a recording.

    Args:
        compute: The loss and its gradients from inputs; touches no other state, and waits for nothing.
        inputs: Of the shapes that all batches have; copied.
        parameters: What the gradients belong to, in their order. Their memory must stay where it is.
        record: How to record.
    """

    def __init__(
        self,
        compute: Callable[[Inputs], Passes],
        inputs: Inputs,
        parameters: Sequence[nn.Parameter],
        record: Recorder,
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._parameters = list(parameters)
        self._replay, (self._loss, gradients) = record(lambda: compute(self._inputs))
        self._gradients = list(gradients)

    def fits(self, inputs: Inputs) -> bool:
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
        self._replay()
        return self._loss.clone()

    def backward(self, upstream: Tensor) -> list[Tensor]:
        """The gradients times what comes from above, in new memory, which autograd then takes without a copy."""
        return list(torch._foreach_mul(self._gradients, upstream))


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


def cuda_recorder(compute: Callable[[], Passes]) -> tuple[Callable[[], None], Passes]:
    """Records a CUDA graph on the current stream, which must be the one that the computation was warmed up on and not
    the default one."""
    gc.collect()  # memory of the warm-up that cycles hold back would be reserved beside the graph's
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on to ask the driver what a capture in the strictest mode forbids them to ask.
    failed: Exception | None = None
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            try:
                result = compute()
            except Exception as error:
                failed = error
                raise
    except Exception:
        if failed is not None:  # ending a broken capture raises too, and not what broke it
            raise failed from None
        raise
    return graph.replay, result


@contextmanager
def apart_from_autograd(model: nn.Module) -> Iterator[list[nn.Parameter]]:
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
