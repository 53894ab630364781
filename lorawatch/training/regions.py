"""Compiles the repeated layers of a model: one decoder layer is compiled, and all layers run the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorawatch.training.attention import document_attention

CAUSAL = "lorawatch_causal_sdpa"
"""A name for SDPA under which transformers makes no mask; no mask means causal."""
PACKED = "lorawatch_within_documents"
"""The same for packed rows: attention that finds the documents in its arguments."""
BACKEND = "inductor"
_WINDOWS = ("sliding_window", "attention_chunk_size")


class Regions:
    """The compiled parts of a causal model: its decoder layers, its last norm, its loss.

    A whole model takes minutes to compile and a layer seconds, and the kernels are nearly the same. The model keeps its
    modules and the names of its weights.

    Args:
        base: The model with its adapters, without PEFT's wrapper.
        sequence_length: Positions of every row.
        longest: Positions of the longest document in packed rows; None: each row is one document.

    Raises:
        ValueError: The model has no repeated layers.
    """

    def __init__(self, base: Any, sequence_length: int, longest: int | None = None) -> None:
        self._base = base
        self._length, self._longest = sequence_length, longest
        self.layers, self._norms = _repeated_layers(base)
        if not self.layers:
            raise ValueError(f"{type(base).__name__} has no list of equal layers")
        self._loss: Callable[..., Any] = base.loss_function
        self._attention: str = base.config._attn_implementation

    def __str__(self) -> str:
        kinds = sorted({type(layer).__name__ for layer in self.layers})
        return f"{len(self.layers)} × {', '.join(kinds)}"

    def compile(self) -> None:
        """Mark the parts for compiling. Each is compiled when it is first called."""
        for module in (*self.layers, *self._norms):
            module.compile(dynamic=False, backend=BACKEND)
        # The loss is fused with the cast of the logits to FP32, so that FP32 logits are never stored.
        self._base.loss_function = torch.compile(self._loss, dynamic=False, backend=BACKEND)
        if self.needs_no_mask:
            # While a graph is recorded transformers cannot check whether rows are packed, and always makes a mask, with which
            # attention loses its fast path. Rows that are not packed need none: they are padded on the right, where no
            # real position looks.
            name, attend = CAUSAL, sdpa_attention_forward
            if self._longest is not None:
                name, attend = PACKED, document_attention(self._longest, self._base.device)
            ALL_ATTENTION_FUNCTIONS.register(name, attend)
            self._base.set_attn_implementation(name)

    def restore(self) -> None:
        """Restore the model as it was."""
        for module in (*self.layers, *self._norms):
            module._compiled_call_impl = None
        self._base.loss_function = self._loss
        if self._base.config._attn_implementation != self._attention:
            self._base.set_attn_implementation(self._attention)

    def modules_below(self, index: int) -> list[nn.Module]:
        """The modules that compute before a layer: the layers below it, and the token embedding."""
        return [*self.layers[:index], self._base.get_input_embeddings()]

    @contextmanager
    def capture_inputs(self, index: int) -> Iterator[list[Tensor]]:
        """Within, collect the hidden states that a layer is given: shape (rows, positions, width), floating point.

        Args:
            index: Of the layer, from the lowest.

        Yields:
            A list that gets an entry each time the layer is called.
        """
        layer, entered = self.layers[index], list[Tensor]()
        call = layer._compiled_call_impl or layer._call_impl

        def noting(*given: Any, **named: Any) -> Any:
            """The layer, after its hidden states are noted."""
            entered.append(given[0] if given else named["hidden_states"])
            return call(*given, **named)

        before = layer._compiled_call_impl
        layer._compiled_call_impl = noting  # outside the compiled code
        try:
            yield entered
        finally:
            layer._compiled_call_impl = before

    @property
    def needs_no_mask(self) -> bool:
        """Whether attention needs no mask. transformers makes one where a window limits attention."""
        config = self._base.config.get_text_config()
        windows = [window for name in _WINDOWS if isinstance(window := getattr(config, name, None), int)]
        return (
            self._attention == "sdpa"
            and getattr(config, "is_causal", True) is not False
            and all(window >= self._length for window in windows)
        )


def _repeated_layers(base: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers of the outermost lists of equal layers, and the norms beside those lists."""
    layers: list[nn.Module] = []
    norms: list[nn.Module] = []
    within: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if name.startswith(within):
            continue
        lists = [c for c in module.children() if isinstance(c, nn.ModuleList) and len({type(x) for x in c}) == 1]
        for child_name, child in module.named_children():
            if child in lists:
                layers += list(child)
                within += (f"{name}.{child_name}" if name else child_name,)
            elif lists and "Norm" in type(child).__name__:
                norms.append(child)
    return layers, norms
