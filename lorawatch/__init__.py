"""lorawatch: launch, watch, record and compare multi-GPU LoRA fine-tuning runs."""

from __future__ import annotations

from lorawatch.system.version import __version__

__all__ = ["StepCallback", "__version__"]

TYPE_CHECKING = False  # as typing's, which a typing.py of the user's could not stand in for here

if TYPE_CHECKING:
    from lorawatch.training.callback import StepCallback


def __getattr__(name: str) -> object:
    # Lazy: the commands that only watch must not load torch.
    if name == "StepCallback":
        from lorawatch.training.callback import StepCallback

        return StepCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
