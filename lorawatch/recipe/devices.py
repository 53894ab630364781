"""The little language of `--gpus` and `launch.gpus`: which devices a run asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceRequest:
    """What was asked for, before anybody looked which GPUs there are.

    Attributes:
        indices: the driver's indices in the order asked for; None for all GPUs (or, where there is none, the CPU).
        cpu_ranks: Number of CPU ranks; None where GPUs are asked for.
    """

    indices: tuple[int, ...] | None = None
    cpu_ranks: int | None = None


def parse_gpus(text: str | int | list[int]) -> DeviceRequest:
    """Read `all`, `0,2`, `[0, 2]`, `cpu` or `cpu:4`.

    Raises:
        ValueError: It is none of these, or names a GPU twice; the message says what is allowed.
    """
    if isinstance(text, int):
        text = [text]
    if isinstance(text, list):
        text = ",".join(str(i) for i in text)
    text = text.strip().lower()
    if text == "all":
        return DeviceRequest()
    if match := re.fullmatch(r"cpu(?::(\d{1,6}))?", text):
        ranks = int(match[1] or 1)
        if not 1 <= ranks <= 64:
            raise ValueError("cpu:N takes 1 to 64 ranks")
        return DeviceRequest(cpu_ranks=ranks)
    if not re.fullmatch(r"\d{1,6}(\s*,\s*\d{1,6})*", text):
        raise ValueError("allowed: all, GPU indices such as 0,2, or cpu:N for N ranks on the CPU")
    indices = tuple(int(i) for i in text.split(","))
    if len(set(indices)) < len(indices):
        raise ValueError("it names a GPU twice")
    return DeviceRequest(indices=indices)
