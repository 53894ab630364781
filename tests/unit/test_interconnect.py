"""Which way gradients take: through the host's memory only where that is known to be worth it, or asked for."""

from __future__ import annotations

import pytest

from lorawatch.launch.interconnect import environment
from lorawatch.recipe import loading

FAST = ("train.engine=fast",)
OFF = {"NCCL_P2P_DISABLE": "1"}


def chosen(*overrides: str, ranks: int = 2, linked: bool = True, base: dict[str, str] | None = None) -> dict[str, str]:
    return environment(loading.load("exxact-8b", [*overrides]), ranks, linked=linked, base=base or {})


def test_two_linked_gpus_with_long_compiled_steps_let_nvlink_sleep() -> None:
    assert chosen(*FAST) == OFF
    assert chosen(*FAST, "train.batch_size_per_gpu=8") == OFF


@pytest.mark.parametrize(
    "overrides",
    [
        (),  # the reference engine, which leaves the GPU far from its power limit
        (*FAST, "lora.targets=all-linear"),  # six times the gradients
        (*FAST, "data.sequence_length=128"),  # a quarter of the step
        (*FAST, "model.name=tiny-llama"),
        (*FAST, "launch.strategy=separate"),
        (*FAST, "launch.p2p=direct"),
        (*FAST, "model.name=somebody/unknown"),
    ],
)
def test_elsewhere_nccl_chooses(overrides: tuple[str, ...]) -> None:
    assert chosen(*overrides) == {}


def test_other_machines_are_left_to_nccl() -> None:
    assert chosen(*FAST, ranks=1) == chosen(*FAST, ranks=4) == chosen(*FAST, linked=False) == {}


def test_the_user_has_the_last_word() -> None:
    assert chosen("launch.p2p=host", ranks=8, linked=False) == OFF
    assert chosen("launch.p2p=host", ranks=1) == {}
    assert chosen(*FAST, base={"NCCL_P2P_DISABLE": "0"}) == {}
    assert chosen("launch.p2p=host", base={"NCCL_P2P_DISABLE": "0"}) == {}
