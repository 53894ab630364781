"""Where a process stands among the ranks, as torchrun's environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

# What torchrun tells a rank, and accelerate, transformers and torch read as "there are others".
_GROUP = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A rank's numbers; a process without torchrun is rank 0 of 1.

    Attributes:
        separate: Each rank trains its own model by itself, at the same time as the others.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    attempt: int = 0
    separate: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Place:
        """Read RANK, LOCAL_RANK, WORLD_SIZE and TORCHELASTIC_RESTART_COUNT."""
        env = os.environ if environment is None else environment

        def number(name: str, default: int) -> int:
            try:
                return int(env.get(name, default))
            except ValueError:
                return default

        return cls(
            number("RANK", 0), number("LOCAL_RANK", 0), number("WORLD_SIZE", 1), number("TORCHELASTIC_RESTART_COUNT", 0)
        )

    def separated(self) -> Place:
        """The same rank of a run whose ranks train separately."""
        return replace(self, separate=True)

    @property
    def alone(self) -> bool:
        """Whether no other rank takes part in its steps."""
        return self.separate or self.world_size == 1

    @property
    def together(self) -> int:
        """How many ranks train one model."""
        return 1 if self.alone else self.world_size

    @property
    def device_index(self) -> int:
        """Its GPU among those that torch sees."""
        return 0 if self.alone else self.local_rank


def stand_alone(place: Place, environment: MutableMapping[str, str] | None = None) -> None:
    """Hide the other ranks and their GPUs from the libraries of this process; before torch is imported.

    Under torchrun's variables accelerate begins a process group and wraps the model in DDP even for a single rank, and
    without them the Trainer spreads a batch over every GPU it sees. A run of one rank and each rank of a separate run
    do the same work this way, so that the one can be held against the other.
    """
    env = os.environ if environment is None else environment
    for name in _GROUP:
        env.pop(name, None)
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        env["CUDA_VISIBLE_DEVICES"] = str(place.local_rank)
    else:
        names = [name.strip() for name in visible.split(",")]
        env["CUDA_VISIBLE_DEVICES"] = names[place.local_rank] if place.local_rank < len(names) else ""
