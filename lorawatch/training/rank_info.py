"""A process's place among the ranks, from torchrun's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

from lorawatch.system import visible_devices

# torchrun's variables, from which accelerate, transformers and torch conclude that there are other ranks.
_GROUP = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


FIRST_ATTEMPT_VARIABLE = "LORAWATCH_FIRST_ATTEMPT"
"""The number of attempts before a resume; torchrun counts its own from 0."""
RESUMED_AT_VARIABLE = "LORAWATCH_RESUMED_AT"
"""The step of the checkpoint that a resumed run continues from."""


@dataclass(frozen=True)
class RankInfo:
    """A rank's numbers. A process without torchrun is rank 0 of 1.

    Attributes:
        rank: Among all ranks of the run.
        local_rank: Among the ranks of this host.
        world_size: Ranks of the run.
        attempt: Which start of the workers this is, from 0.
        separate: Each rank trains its own model, at the same time as the others.
        resumed: The step that a resume went back to, and the attempt that it began; None: the run was not resumed.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    attempt: int = 0
    separate: bool = False
    resumed: tuple[int, int] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RankInfo:
        """Read RANK, LOCAL_RANK, WORLD_SIZE, TORCHELASTIC_RESTART_COUNT, and the recorder's variables for a resume."""
        env = os.environ if environment is None else environment

        def number(name: str, default: int) -> int:
            try:
                return int(env.get(name, default))
            except ValueError:
                return default

        first = number(FIRST_ATTEMPT_VARIABLE, 0)
        resumed_at = number(RESUMED_AT_VARIABLE, -1)
        return cls(
            number("RANK", 0),
            number("LOCAL_RANK", 0),
            number("WORLD_SIZE", 1),
            first + number("TORCHELASTIC_RESTART_COUNT", 0),
            resumed=(resumed_at, first) if resumed_at >= 0 else None,
        )

    def as_separate(self) -> RankInfo:
        """The same rank, of a run whose ranks train separately."""
        return replace(self, separate=True)

    @property
    def trains_alone(self) -> bool:
        """Whether no other rank trains the same model."""
        return self.separate or self.world_size == 1

    @property
    def model_world_size(self) -> int:
        """How many ranks train one model."""
        return 1 if self.trains_alone else self.world_size

    @property
    def device_index(self) -> int:
        """Index of its GPU among those that torch sees."""
        return 0 if self.trains_alone else self.local_rank


def hide_other_ranks(rank_info: RankInfo, environment: MutableMapping[str, str] | None = None) -> None:
    """Hide the other ranks and their GPUs from the libraries of this process. Call it before torch is imported.

    With torchrun's variables, accelerate begins a process group and wraps the model in DDP even for one rank. Without
    them, the Trainer spreads a batch over every GPU that it sees. Afterwards a run of one rank and each rank of a
    separate run do the same work, so that they can be compared.

    Args:
        rank_info: This rank.
        environment: Is changed; None: this process's environment.
    """
    env = os.environ if environment is None else environment
    for name in _GROUP:
        env.pop(name, None)
    visible_devices.keep_one(env, rank_info.local_rank)
