"""One finding of `lorawatch doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CheckStatus = Literal["ok", "warn", "fail", "info"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it.

    Attributes:
        name: What was looked at, short.
        status: `fail`: runs cannot work until it is fixed; `warn`: something will be slower, missing or refused;
            `info`: a fact, or something lorawatch does without.
        found: What was found, one sentence.
        advice: What to do, or None.
    """

    name: str
    status: CheckStatus
    found: str
    advice: str | None = None


def gib(value: int) -> str:
    """Bytes as GiB, one digit."""
    return f"{value / 2**30:,.1f} GiB"
