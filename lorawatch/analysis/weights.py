"""Bytes of a frozen base model's weights, by the format of its linear layers."""

from __future__ import annotations

from typing import Literal

from lorawatch.analysis.shape import LINEARS, ModelShape

Quantization = Literal["none", "fp8", "nf4"]

# QLoRA's sizes (Dettmers et al. 2023, section 3), which are bitsandbytes' defaults.
_NF4_BLOCK, _NF4_SCALES_BLOCK = 64, 256
# The 16 values of NF4, the 256 values of a scale, the scales' mean; float32.
_NF4_TABLES_BYTES = 4 * (16 + 256 + 1)


def linear_bytes(inputs: int, outputs: int, dtype_bytes: int, quantization: Quantization = "none") -> int:
    """Bytes of the weight of one linear layer.

    Args:
        inputs: Of the layer.
        outputs: Of the layer.
        dtype_bytes: A weight's where it is not quantized.
        quantization: `nf4`: four bits a weight, a scale in 8 bits each 64 weights, a float32 scale each 256 of those
            (bitsandbytes' double quantization). `fp8`: once for the forward product and once, transposed, for the gradient
            of its input, a float32 scale a row of each.
    """
    weights = inputs * outputs
    if quantization == "nf4":
        scales = -(-weights // _NF4_BLOCK)
        return -(-weights // 2) + scales + 4 * -(-scales // _NF4_SCALES_BLOCK) + _NF4_TABLES_BYTES
    if quantization == "fp8":
        return 2 * weights + 4 * (inputs + outputs)
    return dtype_bytes * weights


def base_bytes(shape: ModelShape, dtype_bytes: int, quantization: Quantization = "none") -> int:
    """Bytes of the whole base model; embeddings, head, norms and biases are never quantized."""
    plain = dtype_bytes * shape.parameters
    if quantization == "none":
        return plain
    sizes = [shape.linear(name) for name in LINEARS]
    saved = sum(linear_bytes(i, o, dtype_bytes) - linear_bytes(i, o, dtype_bytes, quantization) for i, o in sizes)
    return plain - shape.layers * saved
