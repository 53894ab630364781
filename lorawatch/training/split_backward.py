"""A training step's forward and backward pass, in parts that can be recorded one by one.

In two parts the gradients of all but the lowest layers are there before the rest is computed, and can be on their way to
the other ranks meanwhile.
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
"""What a part computes: the loss, by the first one, and gradients."""
Part = Callable[[Inputs], PartResult]

_SPLIT_FRACTION = 8
"""The last part has one layer in so many: enough work to hide the exchange of all others' gradients behind, and few
gradients whose own exchange nothing hides."""


@dataclass(frozen=True)
class StepComputation:
    """A step's computation.

    Attributes:
        parts: To be called in turn, with the same inputs.
        groups: For each part the places of the parameters whose gradients it computes, among all that are trained.
    """

    parts: Sequence[Part]
    groups: Sequence[Sequence[int]]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The loss, detached, and the gradients in the parameters' order."""
        found = [part(inputs) for part in self.parts]
        loss = found[0][0]
        assert loss is not None
        placed: dict[int, Tensor] = {}
        for group, (_, gradients) in zip(self.groups, found, strict=True):
            placed.update(zip(group, gradients, strict=True))
        return loss, [placed[place] for place in sorted(placed)]


def unsplit_backward(model: Any, trained: Sequence[nn.Parameter]) -> StepComputation:
    """Both passes in one part."""

    def compute(inputs: Inputs) -> PartResult:
        loss = model(**inputs).loss
        return loss.detach(), torch.autograd.grad(loss, trained)

    return StepComputation([compute], [range(len(trained))])


def split_backward(model: Any, regions: Regions, trained: Sequence[nn.Parameter]) -> StepComputation | None:
    """The passes in two parts: the backward pass is cut where the lowest layers end.

    None where there is nothing to cut. The cut does not hold in a model that reaches a low layer by another way than
    through the layers above it.
    """
    at = -(-len(regions.layers) // _SPLIT_FRACTION)
    if at == len(regions.layers):
        return None
    low = {id(p) for module in regions.modules_below(at) for p in module.parameters()}
    upper = [place for place, p in enumerate(trained) if id(p) not in low]
    lower = [place for place, p in enumerate(trained) if id(p) in low]
    if not upper or not lower:
        return None
    cut = _Cut()

    def first(inputs: Inputs) -> PartResult:
        with regions.capture_inputs(at) as entered:
            loss = model(**inputs).loss
        (cut.hidden,) = entered
        *gradients, cut.gradient = torch.autograd.grad(loss, [*(trained[place] for place in upper), cut.hidden])
        return loss.detach(), gradients

    def second(inputs: Inputs) -> PartResult:
        hidden, gradient = cut.hidden, cut.gradient
        assert hidden is not None
        cut.hidden = cut.gradient = None  # so that nothing is held longer than it is needed
        return None, torch.autograd.grad(hidden, [trained[place] for place in lower], gradient)

    return StepComputation([first, second], [upper, lower])


def split_backward_if_equal(
    model: Any, regions: Regions, trained: Sequence[nn.Parameter], inputs: Inputs
) -> StepComputation:
    """The passes in two parts where those find the same gradients, else in one.

    Args:
        model: Whose loss it is.
        regions: Its layers.
        trained: What the gradients belong to.
        inputs: A batch to try.
    """
    one, two = unsplit_backward(model, trained), split_backward(model, regions, trained)
    if two is None:
        return one
    found = []
    for passes in (two, one):
        torch.manual_seed(0)  # the same dropout
        try:
            found.append(passes(inputs)[1])
        except (
            RuntimeError,
            ValueError,
            LookupError,
        ):  # no gradient comes by the cut, or nothing enters the layer at it
            return one
    return two if all(_nearly_equal(a, b) for a, b in zip(*found, strict=True)) else one


def _nearly_equal(gradient: Tensor, other: Tensor) -> bool:
    """Whether two gradients of a parameter differ by rounding alone."""
    return bool((gradient - other).norm() <= 0.01 * other.norm())


@dataclass
class _Cut:
    """What the first part leaves to the second."""

    hidden: Tensor | None = None
    gradient: Tensor | None = None
