"""Random weights drawn on their device, one module after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lorawatch.training.facts import is_linear
from lorawatch.training.safe_loading import model_from_config

ReplaceLayer = Callable[[nn.Module], nn.Module]
"""What takes the place of a module whose weights have just been drawn."""


def draw_model(config: Any, dtype: torch.dtype, device: torch.device, replace_layer: ReplaceLayer | None = None) -> Any:
    """A model of a config, its weights drawn as transformers draws them, from torch's generator as it stands.

    Each weight is drawn once and in the same order whatever `exchange` makes of it, so that a quantized model is the plain
    one of the same seed, quantized. There is never more than one layer as it was drawn beside those exchanged.

    Args:
        config: transformers' config.
        dtype: Of the weights as they are drawn.
        device: Where they are drawn; another kind of device draws others.
        exchange: Of the linear layers, the output head left out.
    """
    with torch.device("meta"):
        model = model_from_config(config, dtype=dtype)
    head = model.get_output_embeddings()
    exchanged: set[nn.Module] = set()

    def fill(module: nn.Module, owner: Any) -> None:
        # Innermost first, each by the `_init_weights` of the model it belongs to: as PreTrainedModel.initialize_weights.
        for child in module.children():
            fill(child, child if isinstance(child, PreTrainedModel) else owner)
            if isinstance(module, nn.ModuleList):
                finish(child)
        module.to_empty(device=device, recurse=False)
        owner._initialize_weights(module)

    def finish(layer: nn.Module) -> None:
        # Not earlier: a module's `_init_weights` may draw the weights of its linear layers anew, as GPT-2's does.
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
