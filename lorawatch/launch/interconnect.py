"""Which way the gradients of a host's GPUs take: from GPU to GPU, or through the host's memory."""

from __future__ import annotations

from collections.abc import Mapping

from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.errors import LorawatchError
from lorawatch.models.memory import workload
from lorawatch.recipe.schema import Recipe

VARIABLE = "NCCL_P2P_DISABLE"
_BYTES_S = 25e9
"""What an all-reduce of two GPUs through host memory over PCIe 5 does, beside what it waits for."""
_FLOPS = 1e15
"""A second: the dense BF16 peak of an H100, so that no step is shorter than its FLOP over this."""
_MOST = 0.04
"""Share of that shortest time that the way through the host may take: about a fiftieth of a real step."""


def environment(recipe: Recipe, ranks: int, *, linked: bool, base: Mapping[str, str]) -> dict[str, str]:
    """Variables of NCCL for the ranks of a run.

    Args:
        ranks: That train together.
        linked: Whether their GPUs have NVLink, and a PCIe of generation 5 beside it.
        base: The user's environment, which goes first.
    """
    wanted = recipe.launch.p2p
    if VARIABLE in base or ranks < 2 or recipe.launch.strategy == "separate":
        return {}
    through_host = wanted == "host" or (wanted == "auto" and linked and _spares(recipe, ranks))
    return {VARIABLE: "1"} if through_host else {}


def _spares(recipe: Recipe, ranks: int) -> bool:
    """Whether the way through the host's memory costs less than what NVLink draws.

    A link that has carried something stays awake for a while, 50 ms on an H100 (nvidia-smi nvlink -gLowPwrInfo), and
    draws power that a GPU at its power limit then lacks for computing. Two H100 that train an 8B model in compiled steps of
    58 ms lose 1 ms to that, whether they exchange 1 MB or 27 MB in a step, and two H200 1.3 ms for 27 MB; through host
    memory those take 1 ms, nearly all of it while the lowest layers are computed (tests/benchmarks/gpu_coupling.py). So this
    is for long steps, small gradients, and the engine that brings GPUs to their limit; more than two GPUs share the host's
    memory.
    """
    if ranks != 2 or recipe.train.engine != "fast":
        return False
    try:
        work = workload(recipe, ranks)
    except LorawatchError:  # of a shape that nothing here knows
        return False
    shape, adapters = work.shape, work.lora.parameters(work.shape)
    flops = lora_flops_per_token(
        shape.parameters - (0 if shape.tied else shape.vocabulary * shape.hidden), adapters, work.sequence_length,
        shape.query_width, shape.layers,
    )  # fmt: skip
    tokens = work.batch * work.sequence_length * work.gradient_accumulation
    return 4 * adapters / _BYTES_S <= _MOST * flops * tokens / _FLOPS
