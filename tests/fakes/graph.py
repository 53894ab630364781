"""A CUDA graph's stand-in on the CPU: what it recorded it computes again, into the same tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lorawatch.recipe import schema
from lorawatch.training.fast_engine import FastEngine, StaticCollator
from lorawatch.training.graph import Recorded
from lorawatch.training.observer import Observer


def repeating(parts: Sequence[Callable[[], Recorded]]) -> list[tuple[Callable[[], None], Recorded]]:
    """A recorder whose replays compute and fill the tensors of the first time."""
    return [_repeating(part) for part in parts]


def _repeating(part: Callable[[], Recorded]) -> tuple[Callable[[], None], Recorded]:
    import torch

    loss, gradients = part()

    def replay() -> None:
        with torch.enable_grad():
            new_loss, new_gradients = part()
        if loss is not None and new_loss is not None:
            loss.copy_(new_loss)
        gradients.copy_(new_gradients)

    return replay, (loss, gradients)


class RecordedEngine(FastEngine):
    """Records as on a GPU; a replay computes with the recording's parameters and below the recording's entrance."""

    replays = 0

    def __init__(self, recipe: schema.Recipe, collator: StaticCollator, observer: Observer) -> None:
        super().__init__(recipe, collator, observer, self._recorder)

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self._model = model
        super().on_train_begin(*args, model=model, **kwargs)

    def _recorder(self, parts: Sequence[Callable[[], Recorded]]) -> list[tuple[Callable[[], None], Recorded]]:
        held = [
            (module._parameters, name, parameter)
            for module in self._base.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]

        def again(part: Callable[[], Recorded]) -> Recorded:
            graphed, self._graphed = self._graphed, None
            hooks, self._model._forward_hooks = self._model._forward_hooks, OrderedDict()  # a graph replays no hooks
            real = [parameters[name] for parameters, name, _ in held]
            for parameters, name, double in held:
                parameters[name] = double
            try:
                return part()
            finally:
                for (parameters, name, _), parameter in zip(held, real, strict=True):
                    parameters[name] = parameter
                self._graphed, self._model._forward_hooks = graphed, hooks
                self.replays += part is parts[0]

        return repeating([partial(again, part) for part in parts])
