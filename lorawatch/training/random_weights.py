"""Draws random weights on their device, one module after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lorawatch.training.facts import is_linear
from lorawatch.training.safe_loading import model_from_config

ReplaceLayer = Callable[[nn.Module], nn.Module]
"""Returns the module that replaces a module whose weights were just drawn."""


def draw_model(config: Any, dtype: torch.dtype, device: torch.device, replace_layer: ReplaceLayer | None = None) -> Any:
    """A model of a config, with weights that are drawn as transformers draws them, from torch's global generator.

    Each weight is drawn once and in the same order whatever `replace_layer` makes of it. So a quantized model is the
    plain model of the same seed, quantized. At most one layer is in memory as it was drawn.

    Args:
        config: transformers' config.
        dtype: Of the weights as they are drawn.
        device: Where they are drawn. Another kind of device draws others.
        replace_layer: Called for each linear layer except the output head; None: layers stay as drawn.
    """
    with torch.device("meta"):
        model = model_from_config(config, dtype=dtype)
    head = model.get_output_embeddings()
    exchanged: set[nn.Module] = set()

    def fill(module: nn.Module, owner: Any) -> None:
        # The order of PreTrainedModel.initialize_weights: innermost first, each by the `_init_weights` of its own model.
        for child in module.children():
            fill(child, child if isinstance(child, PreTrainedModel) else owner)
            if isinstance(module, nn.ModuleList):
                finish(child)
        module.to_empty(device=device, recurse=False)
        owner._initialize_weights(module)

    def finish(layer: nn.Module) -> None:
        # Not earlier: a module's `_init_weights` may draw the weights of its linear layers again, as GPT-2's does.
        if replace_layer is None:
            return
        for name, module in list(layer.named_modules()):
            if name and is_linear(module) and module is not head and module not in exchanged:
                new = replace_layer(module)
                exchanged.add(new)
                layer.set_submodule(name, new)

    with torch.no_grad():
        fill(model, model)
        finish(model)
    model.tie_weights()
    return model
