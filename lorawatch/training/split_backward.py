"""A training step's forward and backward pass, in one part or in two, which can be recorded one by one.

In two parts, the gradients of all but the lowest layers are ready before the rest is computed, so that they can be
exchanged between the ranks in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorawatch.training.regions import Regions

Inputs = Mapping[str, Tensor]
PartResult = tuple[Tensor | None, Sequence[Tensor]]
"""What a part computes: the loss, of shape (), from the first part only; and gradients, each of its parameter's shape
and dtype.
"""
Part = Callable[[Inputs], PartResult]

_SPLIT_FRACTION = 8
"""The second part has one layer in so many. That is enough work to hide the exchange of all other layers' gradients,
and leaves few gradients whose own exchange is not hidden.
"""


@dataclass(frozen=True)
class StepComputation:
    """The computation of a step.

    Attributes:
        parts: Called in order, with the same inputs.
        groups: For each part the indices of the parameters whose gradients it computes, among all trained parameters.
    """

    parts: Sequence[Part]
    groups: Sequence[Sequence[int]]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The loss, detached, of shape (); and the gradients in the parameters' order, each of its parameter's shape
        and dtype.
        """
        results = [part(inputs) for part in self.parts]
        loss = results[0][0]
        assert loss is not None
        placed: dict[int, Tensor] = {}
        for group, (_, gradients) in zip(self.groups, results, strict=True):
            placed.update(zip(group, gradients, strict=True))
        return loss, [placed[index] for index in sorted(placed)]


def unsplit_backward(model: Any, trained: Sequence[nn.Parameter]) -> StepComputation:
    """Forward and backward pass in one part.

    Args:
        model: Returns its loss.
        trained: The parameters whose gradients are computed.
    """

    def compute(inputs: Inputs) -> PartResult:
        """The loss, of shape (), and all gradients, each of its parameter's shape."""
        loss = model(**inputs).loss
        return loss.detach(), torch.autograd.grad(loss, trained)

    return StepComputation([compute], [range(len(trained))])


def split_backward(model: Any, regions: Regions, trained: Sequence[nn.Parameter]) -> StepComputation | None:
    """Forward and backward pass in two parts: the backward pass is split above the lowest layers.

    Not valid for a model in which something else than the layers above uses a low layer's output.

    Args:
        model: Returns its loss.
        regions: Its layers.
        trained: The parameters whose gradients are computed.

    Returns:
        None where there is nothing to split.
    """
    at = -(-len(regions.layers) // _SPLIT_FRACTION)
    if at == len(regions.layers):
        return None
    low = {id(p) for module in regions.modules_below(at) for p in module.parameters()}
    upper = [index for index, p in enumerate(trained) if id(p) not in low]
    lower = [index for index, p in enumerate(trained) if id(p) in low]
    if not upper or not lower:
        return None
    cut = _Cut()

    def first(inputs: Inputs) -> PartResult:
        """The loss, of shape (), and the gradients of the upper layers, each of its parameter's shape."""
        with regions.capture_inputs(at) as entered:
            loss = model(**inputs).loss
        (cut.hidden,) = entered
        *gradients, cut.gradient = torch.autograd.grad(loss, [*(trained[index] for index in upper), cut.hidden])
        return loss.detach(), gradients

    def second(inputs: Inputs) -> PartResult:
        """The gradients of the lowest layers, each of its parameter's shape."""
        hidden, gradient = cut.hidden, cut.gradient
        assert hidden is not None
        cut.hidden = cut.gradient = None  # frees their memory
        return None, torch.autograd.grad(hidden, [trained[index] for index in lower], gradient)

    return StepComputation([first, second], [upper, lower])


def split_backward_if_equal(
    model: Any, regions: Regions, trained: Sequence[nn.Parameter], inputs: Inputs
) -> StepComputation:
    """The computation in two parts where they give the same gradients as one part, and otherwise in one part.

    Args:
        model: Returns its loss.
        regions: Its layers.
        trained: The parameters whose gradients are computed.
        inputs: A batch to try: `input_ids` and `labels` of shape (rows, positions), INT64, and what comes with them.
    """
    one, two = unsplit_backward(model, trained), split_backward(model, regions, trained)
    if two is None:
        return one
    gradients = []
    for passes in (two, one):
        torch.manual_seed(0)  # the same dropout
        try:
            gradients.append(passes(inputs)[1])
        except (RuntimeError, ValueError, LookupError):
            # No gradient reaches the split, or the layer above it gets no hidden states.
            return one
    return two if all(_nearly_equal(a, b) for a, b in zip(*gradients, strict=True)) else one


def _nearly_equal(gradient: Tensor, other: Tensor) -> bool:
    """Whether two gradients of a parameter, of equal shape, differ only by rounding."""
    return bool((gradient - other).norm() <= 0.01 * other.norm())


@dataclass
class _Cut:
    """What the first part leaves to the second: the hidden states at the split and their gradient, both of shape
    (rows, positions, width), floating point.
    """

    hidden: Tensor | None = None
    gradient: Tensor | None = None
