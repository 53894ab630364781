"""What a rank says of itself in its first journal line: device, model sizes, floating-point operations a token."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

import torch

from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.records import RankStarted
from lorawatch.training.place import Place


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model with its adapters.

    Attributes:
        parameters: All weights, adapters included; tied ones count once.
        lora_parameters: Weights of the adapters; None where the model has none.
        flops_per_token: By DESIGN's LoRA formula; None where it does not apply or the sequence length is not known.
        dtype: The base weights' number format, `bfloat16`.
    """

    parameters: int
    lora_parameters: int | None = None
    flops_per_token: float | None = None
    dtype: str | None = None


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a matrix product by weights (GPT-2's Conv1D is one)."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def matmul_parameters(model: torch.nn.Module) -> int:
    """Weights of all linear layers of the base model: the output head counts even when tied, embedding tables and
    adapters do not."""
    total = 0
    for name, module in model.named_modules():
        if is_linear(module) and ".lora_" not in f".{name}":
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor):
                total += weight.numel()
    return total


def model_facts(model: torch.nn.Module, sequence_length: int | None = None) -> ModelFacts:
    """Sizes of a model as it is trained.

    Args:
        model: With its adapters, if it has any.
        sequence_length: Positions of a full sequence, for the attention's share of the FLOPs.
    """
    lora, total, dtypes = 0, 0, dict[torch.dtype, int]()
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if "lora_" in name:
            lora += parameter.numel()
        else:
            dtypes[parameter.dtype] = dtypes.get(parameter.dtype, 0) + parameter.numel()
    dtype = str(max(dtypes, key=lambda d: dtypes[d])).removeprefix("torch.") if dtypes else None
    flops = None
    width, layers = _attention(getattr(model, "config", None))
    if lora and sequence_length and width and layers:
        flops = lora_flops_per_token(matmul_parameters(model), lora, sequence_length, width, layers)
    return ModelFacts(total, lora or None, flops, dtype)


def _attention(config: object) -> tuple[int | None, int | None]:
    """Width of attention (heads × head size) and its layers."""
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None)
    width = heads * size if heads and size else getattr(config, "hidden_size", None)
    return width, getattr(config, "num_hidden_layers", None)


def gpu_identity(device: torch.device) -> tuple[str | None, str | None]:
    """A CUDA device's UUID as NVML writes it, and its name; None for anything else."""
    if device.type != "cuda":
        return None, None
    properties = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", "") or "")
    if uuid and not uuid.startswith(("GPU-", "MIG-")):
        uuid = f"GPU-{uuid}"
    return uuid or None, properties.name


def rank_started(place: Place, device: torch.device, steps_total: int | None, facts: ModelFacts | None) -> RankStarted:
    """A rank's first line of an attempt."""
    uuid, name = gpu_identity(device)
    return RankStarted(
        at=time.time(),
        attempt=place.attempt,
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
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
    )
