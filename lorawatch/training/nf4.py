"""Base weights in NF4 (QLoRA) by bitsandbytes: four bits each with double quantization, computed in the base's own format.

Embeddings, output head and norms stay as they are. `peft.prepare_model_for_kbit_training` would make them float32: a 70B's
tables alone would take 4 GB more and the residual stream twice as much, and the norms compute in float32 anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig


def quantization_config(dtype: torch.dtype) -> Any:
    """What transformers quantizes pretrained weights by, as it reads them.

    Args:
        dtype: Of the computation.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantize_linear(linear: nn.Module, device: torch.device) -> nn.Module:
    """A linear layer as one whose weight is NF4, on a device.

    Args:
        linear: A `torch.nn.Linear`, or GPT-2's Conv1D, which keeps its weight the other way round.
        device: Where it is quantized and stays.
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
    """Quantize a model's linear layers one by one, on a device, and bring the rest there too.

    Args:
        model: On the CPU.
        names: Full names of the layers.
        device: Where it goes.
    """
    for name in names:
        model.set_submodule(name, quantize_linear(model.get_submodule(name), device))
    return model.to(device)


def mark_as_4bit(model: Any, device: torch.device) -> Any:
    """Make a model with NF4 layers known as one to PEFT and the Trainer, as one that transformers quantized is."""
    from bitsandbytes.nn import Linear4bit
    from transformers.utils.quantization_config import QuantizationMethod

    model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    # All of it is on one device; accelerate would take a map that says "cpu" for weights moved out of a GPU's way.
    model.__dict__.pop("hf_device_map", None)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In evaluation bitsandbytes would repack the weights for the CPU's BF16 instructions, rounding their scales;
            # training would then go on with those, and without a gradient.
            module.support_avx512bf16_for_cpu = False
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the weights took as they were read
    return model
