"""A rank's first journal line: its device, the model's sizes, and the FLOPs of a token."""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.run.records import RankStarted
from lorawatch.system.processes import ProcessId
from lorawatch.training.rank_info import RankInfo


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model with its adapters.

    Attributes:
        parameters: All weights, adapters included; tied weights count once.
        lora_parameters: Weights of the adapters; None where the model has none.
        flops_per_token: As `analysis.flops.lora_flops_per_token`; None where that does not apply, or where the sequence
            length is not known.
        dtype: The base weights' number format: `bfloat16`.
    """

    parameters: int
    lora_parameters: int | None = None
    flops_per_token: float | None = None
    dtype: str | None = None


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module multiplies its input by a weight matrix. GPT-2's Conv1D does too."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def linear_layers(model: torch.nn.Module) -> Iterator[tuple[str, int, int]]:
    """Full name, inputs and outputs of each linear layer, without the output head, which PEFT leaves out too."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:
            outputs, inputs = module.weight.shape
            if not isinstance(module, torch.nn.Linear):  # Conv1D keeps its weight transposed
                outputs, inputs = inputs, outputs
            yield name, int(inputs), int(outputs)


def matmul_parameters(model: torch.nn.Module) -> int:
    """Weights of all linear layers of the base model.

    The output head counts even where it is tied. Embedding tables and adapters do not count.
    """
    total = 0
    for name, module in model.named_modules():
        if is_linear(module) and ".lora_" not in f".{name}":
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor):
                total += _weight_count_and_dtype(weight)[0]
    return total


def _weight_count_and_dtype(weight: torch.Tensor) -> tuple[int, torch.dtype]:
    """Number of values of a weight, of any shape, and the dtype in which they are used. Both are the original's where
    bitsandbytes has packed the weight into four bits.
    """
    state = getattr(weight, "quant_state", None)
    return (weight.numel(), weight.dtype) if state is None else (math.prod(state.shape), state.dtype)


def context_length(config: Any) -> int | None:
    """Positions that a model was made for; None where its config does not say.

    `max_position_embeddings`. Most kinds of scaled rotary embedding have raised it already; for the others it is
    multiplied by their factor (as in vLLM's `_get_and_verify_max_len`).

    Args:
        config: transformers' config, of the model or of the text part of a larger one.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict):
        return limit
    factor = rope.get("factor")
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn") or not isinstance(factor, int | float):
        return limit
    raised = (rope.get("original_max_position_embeddings") or limit) != limit
    return limit if raised else max(limit, int(limit * factor))


def model_facts(model: torch.nn.Module, sequence_length: int | None = None) -> ModelFacts:
    """Sizes of a model as it is trained.

    Args:
        model: With its adapters, if it has any.
        sequence_length: Positions of a full sequence, for the FLOPs of attention; None: `flops_per_token` is missing.
    """
    lora, magnitudes, total, dtypes = 0, 0, 0, dict[torch.dtype, int]()
    for name, parameter in model.named_parameters():
        count, held_in = _weight_count_and_dtype(parameter)
        total += count
        if "lora_" in name:
            lora += count
            magnitudes += count if "lora_magnitude" in name else 0
        else:
            dtypes[held_in] = dtypes.get(held_in, 0) + count
    dtype = str(max(dtypes, key=lambda d: dtypes[d])).removeprefix("torch.") if dtypes else None
    flops = None
    width, layers = _attention_width_and_layers(getattr(model, "config", None))
    if lora and sequence_length and width and layers:
        flops = lora_flops_per_token(matmul_parameters(model), lora - magnitudes, sequence_length, width, layers)
    return ModelFacts(total, lora or None, flops, dtype)


def with_attention_span(facts: ModelFacts, config: Any, length: int, span: float) -> ModelFacts:
    """The same sizes for packed rows, where a position attends only to its own document.

    Args:
        facts: For full rows.
        config: transformers' config of the model.
        length: Positions of a full row.
        span: As `analysis.padding.attention_span`.
    """
    width, layers = _attention_width_and_layers(config.get_text_config())
    if facts.flops_per_token is None or not width or not layers:
        return facts
    more = lora_flops_per_token(0, 0, span, width, layers) - lora_flops_per_token(0, 0, length, width, layers)
    return replace(facts, flops_per_token=facts.flops_per_token + more)


def _attention_width_and_layers(config: object) -> tuple[int | None, int | None]:
    """Width of attention (heads × head size) and number of layers; None for what the config does not say."""
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None)
    width = heads * size if heads and size else getattr(config, "hidden_size", None)
    return width, getattr(config, "num_hidden_layers", None)


def gpu_identity(device: torch.device) -> tuple[str | None, str | None]:
    """A CUDA device's UUID, as its driver writes it, and its name; None for another device."""
    if device.type != "cuda":
        return None, None
    properties = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", "") or "")
    if torch.version.hip:
        return rocm_uuid(uuid), properties.name
    if uuid and not uuid.startswith(("GPU-", "MIG-")):
        uuid = f"GPU-{uuid}"
    return uuid or None, properties.name


def rocm_uuid(text: str) -> str | None:
    """An AMD GPU's UUID as its driver writes it, from torch's; None where it is no such thing.

    HIP gives the 16 hexadecimal digits as 16 characters, and torch prints those as if they were the bytes of a UUID:
    `64653832-3837-3330-3064-613337633732` is `GPU-de8287300da37c72`.
    """
    try:
        digits = bytes.fromhex(text.replace("-", "")).decode("ascii").lower()
    except ValueError:
        return None
    return f"GPU-{digits}" if re.fullmatch("[0-9a-f]{16}", digits) else None


def rank_started(
    rank_info: RankInfo, device: torch.device, steps_total: int | None, facts: ModelFacts | None
) -> RankStarted:
    """A rank's first line of an attempt.

    Args:
        rank_info: Which rank this is.
        device: Where it trains.
        steps_total: Steps of the whole training; None: not known.
        facts: Sizes of the model; None: not known.
    """
    uuid, name = gpu_identity(device)
    return RankStarted(
        at=time.time(),
        attempt=rank_info.attempt,
        rank=rank_info.rank,
        local_rank=rank_info.local_rank,
        world_size=rank_info.world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device.type,
        gpu_uuid=uuid,
        gpu_name=name,
        torch_version=str(torch.__version__),
        steps_total=steps_total,
        parameters=facts.parameters if facts else None,
        lora_parameters=facts.lora_parameters if facts else None,
        flops_per_token=facts.flops_per_token if facts else None,
        dtype=facts.dtype if facts else None,
        process=ProcessId.own(),
    )
