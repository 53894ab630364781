"""A CUDA graph's stand-in on the CPU: what it recorded it computes again, into the same tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from lorawatch import recipe as recipes
from lorawatch.training.fast import FastEngine, StaticCollator
from lorawatch.training.graph import Passes
from lorawatch.training.observer import Observer


def repeating(compute: Callable[[], Passes]) -> tuple[Callable[[], None], Passes]:
    """A recorder whose replay computes and fills the tensors of the first time."""
    import torch

    loss, gradients = compute()
    gradients = [g.clone() for g in gradients]

    def replay() -> None:
        with torch.enable_grad():
            new_loss, new_gradients = compute()
        loss.copy_(new_loss)
        for held, new in zip(gradients, new_gradients, strict=True):
            held.copy_(new)

    return replay, (loss, gradients)


class RecordedEngine(FastEngine):
    """Records as on a GPU; a replay computes with the recording's parameters and below the recording's entrance."""

    replays = 0

    def __init__(self, recipe: recipes.Recipe, collator: StaticCollator, observer: Observer) -> None:
        super().__init__(recipe, collator, observer, self._recorder)

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self._model = model
        super().on_train_begin(*args, model=model, **kwargs)

    def _recorder(self, compute: Callable[[], Passes]) -> tuple[Callable[[], None], Passes]:
        held = [
            (module._parameters, name, parameter)
            for module in self._base.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]

        def again() -> Passes:
            graphed, self._graphed = self._graphed, None
            hooks, self._model._forward_hooks = self._model._forward_hooks, OrderedDict()  # a graph replays no hooks
            real = [parameters[name] for parameters, name, _ in held]
            for parameters, name, double in held:
                parameters[name] = double
            try:
                return compute()
            finally:
                for (parameters, name, _), parameter in zip(held, real, strict=True):
                    parameters[name] = parameter
                self._graphed, self._model._forward_hooks = graphed, hooks
                self.replays += 1

        return repeating(again)
