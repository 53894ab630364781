"""Collectives on Python objects, for the few moments outside a step at which all ranks compare what they have."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

_T = TypeVar("_T")


def all_gather(value: _T) -> list[_T]:
    """Each rank's value, in rank order.

    A collective where several ranks train one model; every rank must call it. A rank that trains alone gets its own
    value.

    Args:
        value: This rank's; any object that can be pickled.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
