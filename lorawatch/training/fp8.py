"""Frozen linear layers in FP8, which some GPUs multiply twice as fast as BF16.

Weights are rounded once, when the model is loaded. A layer's input and the gradient of its output are rounded in every
step. Each row has its own scale, its largest magnitude over the format's largest (Micikevicius et al. 2022, FP8 Formats
for Deep Learning, section 3.1, applied to each row), so that one large value affects only its row. Products accumulate
in FP32 and are returned in the input's format. torchao's FP8 training layers round the weights in every step, because
theirs are trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lorawatch.training.facts import linear_layers

FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(FORMAT).max
# A row of zeros would have the scale 0, and be divided by it.
_SMALLEST_SCALE = 1e-12
_MULTIPLE = 16
"""The kernels take inner and outer sizes that are multiples of this."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to FP8 with its own scale. A row's largest magnitude becomes the format's largest.

    Args:
        x: Shape (rows, columns), floating point.

    Returns:
        The rows, shape (rows, columns), `float8_e4m3fn`; and the scales that restore them, shape (rows, 1), FP32.
    """
    values = x.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=_SMALLEST_SCALE)
    return (values / scale).clamp(-_LARGEST, _LARGEST).to(FORMAT), scale


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`(a · a_scale) @ (b · b_scale)ᵀ` of rows in FP8.

    Args:
        a: Shape (m, k), `float8_e4m3fn`.
        a_scale: Shape (m, 1), FP32.
        b: Shape (n, k), `float8_e4m3fn`.
        b_scale: Shape (n, 1), FP32.
        dtype: Of the product.

    Returns:
        Shape (m, n), of `dtype`.
    """
    if a.is_cuda:
        # The tensor cores' own accumulator: its rounding is far below the rounding of the factors.
        return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=dtype, use_fast_accum=True)
    with torch.autocast(a.device.type, enabled=False):
        return ((a.float() * a_scale) @ (b.float() * b_scale).t()).to(dtype)


def check(device: torch.device) -> None:
    """Multiply a few rows on a device.

    Raises:
        RuntimeError: This torch has no such product for the device.
    """
    rows, scale = quantize_rows(torch.ones(_MULTIPLE, _MULTIPLE, device=device))
    multiply(rows, scale, rows, scale, torch.bfloat16)


class _Linear(torch.autograd.Function):
    """A product with a frozen weight, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, transposed_scale: Tensor
    ) -> Tensor:
        """The product with a weight in FP8.

        Args:
            ctx: Keeps the transposed weight for the backward pass.
            x: Shape (…, inputs), floating point.
            weight: Shape (outputs, inputs), `float8_e4m3fn`.
            scale: Shape (outputs, 1), FP32.
            transposed: Shape (inputs, outputs), `float8_e4m3fn`.
            transposed_scale: Shape (inputs, 1), FP32.

        Returns:
            Shape (…, outputs), in the input's dtype.
        """
        ctx.save_for_backward(transposed, transposed_scale)
        rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        return multiply(rows, row_scale, weight, scale, x.dtype).reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `x`, shape (…, inputs), in the dtype of the gradient from above, which has shape (…,
        outputs).
        """
        (gradient,) = upstream
        transposed, scale = ctx.saved_tensors
        rows, row_scale = quantize_rows(gradient.reshape(-1, gradient.shape[-1]))
        product = multiply(rows, row_scale, transposed, scale, gradient.dtype)
        return product.reshape(*gradient.shape[:-1], transposed.shape[0]), None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen `nn.Linear` with its weight in FP8.

    Hopper's and Ada's kernels read both factors along the summed axis, which is another axis in the backward pass. So
    the weight is kept in both orientations, each with the scales of its rows; together they need the memory that it had
    in BF16.

    Args:
        linear: The layer; its weight, of shape (outputs, inputs), is not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            # Plain attributes: DDP would broadcast parameters and buffers, and not every backend supports the format.
            self.rounded, self.scale = quantize_rows(linear.weight)
            self.transposed, self.transposed_scale = quantize_rows(linear.weight.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, in_features) to (…, out_features), floating point: in autocast's dtype where autocast is on, else
        in the input's.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product: Tensor = _Linear.apply(x, self.rounded, self.scale, self.transposed, self.transposed_scale)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def convert_frozen_linears(model: nn.Module) -> int:
    """Replace a LoRA model's frozen linear layers. Adapters, norms, embeddings and output head stay as they are.

    Layers whose sizes the kernels do not take stay as well.

    Args:
        model: With its adapters, on its device.

    Returns:
        The number of layers that were replaced.
    """
    frozen = [
        (name, layer)
        for name, inputs, outputs in linear_layers(model)
        if type(layer := model.get_submodule(name)) is nn.Linear
        and not layer.weight.requires_grad
        and inputs % _MULTIPLE == outputs % _MULTIPLE == 0
    ]
    for name, linear in frozen:
        model.set_submodule(name, Fp8Linear(linear))
        linear.weight = None  # type: ignore[assignment]  # frees the memory although PEFT and hooks may keep the module
    return len(frozen)
