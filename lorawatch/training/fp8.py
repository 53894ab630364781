"""Frozen linear layers in FP8: twice the arithmetic of BF16 on cards that have it.

Weights are rounded once, when the model is loaded; a layer's input and the gradient of its output in every step, each row
by a scale of its own, so that one large value costs its row alone. Products accumulate in FP32 and come out in the
input's format. torchao's FP8 training layers round the weights anew in every step, since theirs are trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lorawatch.training.facts import linear_layers

FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(FORMAT).max
# Below this a row is all but zero: its scale must not become 0, nor what is divided by it infinite.
_SMALLEST_SCALE = 1e-12
_MULTIPLE = 16
"""The products' kernels take inner and outer sizes that are multiples of this."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to FP8 by its own scale, its largest magnitude becoming the format's largest.

    Args:
        x: Shape (rows, columns), floating point.

    Returns:
        The rows in `float8_e4m3fn`, and the scales that they are to be multiplied by, float32, shape (rows, 1).
    """
    values = x.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=_SMALLEST_SCALE)
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(FORMAT), scale


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`(a · a_scale) @ (b · b_scale)ᵀ` of rows in FP8.

    Args:
        a: Shape (m, k), with scales of shape (m, 1).
        b: Shape (n, k), with scales of shape (n, 1).
        dtype: Of the product, shape (m, n).
    """
    if a.is_cuda:
        # The tensor cores' own accumulator: what it rounds is far below what the factors were rounded by.
        return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=dtype, use_fast_accum=True)
    with torch.autocast(a.device.type, enabled=False):
        return ((a.float() * a_scale) @ (b.float() * b_scale).t()).to(dtype)


def check(device: torch.device) -> None:
    """Multiply a few rows.

    Raises:
        RuntimeError: Torch has no such product for the device.
    """
    rows, scale = quantize_rows(torch.ones(_MULTIPLE, _MULTIPLE, device=device))
    multiply(rows, scale, rows, scale, torch.bfloat16)


class _Linear(torch.autograd.Function):
    """A product with a frozen weight, in both directions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, transposed_scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(transposed, transposed_scale)
        rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        return multiply(rows, row_scale, weight, scale, x.dtype).reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = upstream
        transposed, scale = ctx.saved_tensors
        rows, row_scale = quantize_rows(gradient.reshape(-1, gradient.shape[-1]))
        product = multiply(rows, row_scale, transposed, scale, gradient.dtype)
        return product.reshape(*gradient.shape[:-1], transposed.shape[0]), None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen `nn.Linear` with its weight in FP8.

    Hopper's and Ada's kernels read both factors along the sum, which is another axis in the backward pass: the weight is
    held both ways round, each with the scales of its rows, in the memory that it took in BF16.

    Args:
        linear: The layer; its own weight is not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            # Neither parameters nor buffers: DDP would send them from rank to rank, in a format that not every backend has.
            self.rounded, self.scale = quantize_rows(linear.weight)
            self.transposed, self.transposed_scale = quantize_rows(linear.weight.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, in_features) to (…, out_features), in the format that autocast asks for, else in the input's."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product: Tensor = _Linear.apply(x, self.rounded, self.scale, self.transposed, self.transposed_scale)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def convert_frozen_linears(model: nn.Module) -> int:
    """Replace a LoRA model's frozen linear layers; adapters, norms, embeddings and the output head stay as they are.

    A layer of sizes that the kernels do not take stays as well.

    Args:
        model: With its adapters in place, on its device.

    Returns:
        How many layers there were.
    """
    found = [
        (name, layer)
        for name, inputs, outputs in linear_layers(model)
        if type(layer := model.get_submodule(name)) is nn.Linear
        and not layer.weight.requires_grad
        and inputs % _MULTIPLE == outputs % _MULTIPLE == 0
    ]
    for name, linear in found:
        model.set_submodule(name, Fp8Linear(linear))
        linear.weight = None  # type: ignore[assignment]  # free it now: PEFT and hooks may hold the module
    return len(found)
