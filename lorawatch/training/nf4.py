"""Base weights in NF4 (QLoRA) by bitsandbytes: four bits each, with double quantization (Dettmers et al. 2023, section
3).

Products are computed in the base's own number format. Embeddings, output head and norms stay as they are.
`peft.prepare_model_for_kbit_training` would convert them to FP32: the tables of a 70B model alone would take 4 GB more,
and the residual stream twice as much, while the norms already compute in FP32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig


def quantization_config(dtype: torch.dtype) -> Any:
    """How transformers quantizes pretrained weights while it reads them.

    Args:
        dtype: Of the computation.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantize_linear(linear: nn.Module, device: torch.device) -> nn.Module:
    """A linear layer with its weight in NF4.

    Args:
        linear: A `torch.nn.Linear`, or GPT-2's Conv1D, which keeps its weight transposed. The weight has shape
            (outputs, inputs), floating point.
        device: Where the weight is quantized and kept: packed into UINT8 of shape (outputs × inputs / 2, 1).
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight, bias = linear.weight.data, linear.bias
    assert isinstance(weight, torch.Tensor)
    if not isinstance(linear, nn.Linear):
        weight = weight.T
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer: nn.Module = Linear4bit(
            inputs, outputs, bias=bias is not None, compute_dtype=weight.dtype, quant_type="nf4"
        )
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer).to(device)
    if isinstance(bias, torch.Tensor):
        layer.bias = nn.Parameter(bias.data.to(device), requires_grad=False)
    return layer


def quantize_layers(model: Any, names: list[str], device: torch.device) -> Any:
    """Quantize a model's linear layers one by one on a device, and move the rest of the model there.

    Args:
        model: On the CPU.
        names: Full names of the layers.
        device: Where the model goes.
    """
    for name in names:
        model.set_submodule(name, quantize_linear(model.get_submodule(name), device))
    return model.to(device)


def mark_as_4bit(model: Any, device: torch.device) -> Any:
    """Mark a model with NF4 layers as quantized, as transformers does, so that PEFT and the Trainer treat it as such.

    Args:
        model: With its NF4 layers.
        device: Where it is.
    """
    from bitsandbytes.nn import Linear4bit
    from transformers.utils.quantization_config import QuantizationMethod

    model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    # The whole model is on one device. accelerate would read "cpu" in the map as weights offloaded from a GPU.
    model.__dict__.pop("hf_device_map", None)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In evaluation bitsandbytes would repack the weights for the CPU's BF16 instructions, rounding their scales.
            # Training would continue with the repacked weights, and without a gradient.
            module.support_avx512bf16_for_cpu = False
    if device.type == "cuda":
        torch.cuda.empty_cache()  # frees the memory of the unquantized weights
    return model
