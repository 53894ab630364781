"""From what was asked for and which GPUs there are to where the ranks run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorawatch.errors import NoSuitableGpu
from lorawatch.recipe.devices import DeviceRequest
from lorawatch.run.directory import Gpu
from lorawatch.system import visible_devices
from lorawatch.system.processes import usable_cores

DEFAULT_CPU_RANKS = 2  # DDP is DDP from two ranks on; more would only share the same cores


@dataclass(frozen=True)
class Placement:
    """Where the ranks of a run go.

    Attributes:
        device: As torch names it: `cuda`: one rank a GPU, of any vendor; `cpu`: ranks on the CPU over gloo.
        world_size: Number of ranks.
        gpu_uuids: The GPUs in rank order; empty on the CPU.
        vendor: Whose GPUs they are, as `Gpu.vendor`.
    """

    device: Literal["cuda", "cpu"]
    world_size: int
    gpu_uuids: tuple[str, ...] = ()
    vendor: str = visible_devices.NVIDIA

    def environment(self) -> dict[str, str]:
        """Variables that make the ranks see exactly these devices, in this order."""
        threads = max(usable_cores() // self.world_size, 1)
        env = visible_devices.showing(self.vendor, self.gpu_uuids) if self.gpu_uuids else visible_devices.hiding()
        if "OMP_NUM_THREADS" not in os.environ:  # torchrun would set 1
            env["OMP_NUM_THREADS"] = str(threads)
        return env


def place(request: DeviceRequest, gpus: Sequence[Gpu], *, count: int | None = None) -> Placement:
    """Choose the devices of a run.

    Args:
        request: What was asked for.
        gpus: The host's GPUs as the driver lists them; empty where there is none.
        count: Use only the first `count` of them (a sweep's point).

    Raises:
        NoSuitableGpu: An index that is not there, or more devices than there are.
    """
    indices = request.indices if request.indices is not None else tuple(sorted(_visible(gpus)))
    if request.cpu_ranks is not None or not indices:
        ranks = count or request.cpu_ranks or min(DEFAULT_CPU_RANKS, usable_cores())
        return Placement("cpu", ranks)
    there = {g.gpu_index: g for g in gpus}
    absent = [i for i in indices if i not in there]
    if absent:
        listed = ", ".join(f"{g.gpu_index} ({g.sku})" for g in gpus) or "none"
        raise NoSuitableGpu(
            f"GPU {', '.join(map(str, absent))} is not in this machine (GPUs here: {listed})",
            hint="choose others with --gpus, or --gpus cpu:2 for two ranks on the CPU",
        )
    if count is not None:
        if count > len(indices):
            raise NoSuitableGpu(
                f"a sweep point of {count} GPUs, but only {len(indices)} may be used",
                hint="lower --sweep or widen --gpus",
            )
        indices = indices[:count]
    return Placement("cuda", len(indices), tuple(there[i].gpu_uuid for i in indices), gpus[0].vendor)


def _visible(gpus: Sequence[Gpu]) -> list[int]:
    """Indices of the GPUs that this shell may use: `all` means what the user, or Slurm, leaves. Explicit ones are the
    driver's."""
    if not gpus:
        return []
    return visible_devices.allowed(gpus[0].vendor, [(g.gpu_index, g.gpu_uuid) for g in gpus], os.environ)
