"""What to change where a GPU has too little memory, from the estimate and from what other processes use of it."""

from __future__ import annotations

import torch

from lorawatch.analysis.memory import CUDA_CONTEXT_BYTES, DRIVER_BYTES, GIB, NCCL_BYTES
from lorawatch.models import memory as model_memory
from lorawatch.recipe.schema import Recipe

_OTHERS_FROM = GIB
"""Less than this may be this process's own context, whose size is known only roughly."""


def out_of_memory_hint(recipe: Recipe, world_size: int, device: torch.device) -> str:
    """What would fit on a GPU, for people. It can be asked after an allocation has failed.

    Args:
        recipe: The run's.
        world_size: Ranks that train one model.
        device: This rank's GPU.
    """
    total, others = total_and_other_bytes(world_size, device)
    words = model_memory.shortage(recipe, world_size, total - others)
    if not others:
        return words
    held = f"{others / GIB:.1f} of the GPU's {total / GIB:.1f} GiB"
    return f"{words}; other processes hold {held} (nvidia-smi lists them)"


def total_and_other_bytes(world_size: int, device: torch.device) -> tuple[int, int]:
    """A GPU's memory as the driver counts it, and what other processes use of it, in bytes.

    Args:
        world_size: Ranks that train one model; several have NCCL's buffers.
        device: This rank's GPU.
    """
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device) + CUDA_CONTEXT_BYTES + (NCCL_BYTES if world_size > 1 else 0)
    others = total - free - own
    return total + DRIVER_BYTES, others if others >= _OTHERS_FROM else 0
