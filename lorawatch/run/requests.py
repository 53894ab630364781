"""Requests to the processes that use a run's adapter, and their answers."""

from __future__ import annotations

from typing import Literal

import msgspec

ChatTarget = Literal["base", "adapter", "both"]
"""Who answers: the base model, the model with the run's adapter, or one after the other."""


AdapterChoice = Literal["last", "best"]
"""The adapter at the run's end, or the one whose evaluation had the lowest loss."""


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """The request to `python -m lorawatch.training.chat`, which reads the prompt from its standard input."""

    target: ChatTarget = "adapter"
    adapter: AdapterChoice = "last"
    interactive: bool = False
    """A conversation on a terminal."""
    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    raw: bool = False
    """The prompt is continued as it is, without the chat template."""
    cpu: bool = False


class MergeRequest(msgspec.Struct, kw_only=True, frozen=True):
    """The request to `python -m lorawatch.training.merge`."""

    folder: str
    """Absolute."""
    adapter: AdapterChoice = "last"
    dtype: str | None = None
    """None: as the base weights."""
    force: bool = False


class MergeReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer of `python -m lorawatch.training.merge`."""

    run_id: str
    adapter: AdapterChoice
    """Which of the run's adapters was merged."""
    step: int | None = None
    """Of that adapter, where it is known."""
    folder: str
    model: str
    dtype: str
    parameters: int
    size_bytes: int
    """Of all files."""
    files: list[str]
    largest_difference: float
    """Between the logits of base + adapter and of the merged weights, read back, on a short prompt."""
    relative_difference: float
    """Its root mean square, over that of the logits."""
    allowed_difference: float
    """How large the relative difference may be by the rounding of the number formats."""
    adapter_difference: float
    """The same between base and base + adapter: what the merge had to bring about."""
    unpacked_from: str | None = None
    """The GGUF file whose quantised weights were unpacked."""
