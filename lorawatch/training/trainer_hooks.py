"""Hooks into accelerate and transformers for figures that a Trainer hands to no callback.

The hooks replace functions of those libraries while a meter runs, and `None` puts the originals back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import transformers.trainer
from accelerate import Accelerator

from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.meter import StepMeter

_clip_grad_norm = Accelerator.clip_grad_norm_
_skip_first_batches = transformers.trainer.skip_first_batches


def watch_gradient_norm(meter: StepMeter | None) -> None:
    """Give the meter each step's gradient norm.

    Every Trainer calls `Accelerator.clip_grad_norm_`, and its result reaches a callback only after a synchronisation with
    the GPU, so the method itself is wrapped.

    Args:
        meter: Gets the norm, a tensor of shape () on the device; None: the original method is put back.
    """
    if meter is None:
        Accelerator.clip_grad_norm_ = _clip_grad_norm
        return

    def clip_grad_norm_(self: Any, *args: Any, **kwargs: Any) -> Any:
        norm = _clip_grad_norm(self, *args, **kwargs)
        if norm is not None:
            meter.set_grad_norm(norm)
        return norm

    Accelerator.clip_grad_norm_ = clip_grad_norm_


def watch_skipped_batches(meter: StepMeter | None, counts: BatchCounts | None) -> None:
    """Time the data loader of a resumed epoch too.

    A resumed epoch begins in the middle, with a data loader that `skip_first_batches` makes and no callback gets.

    Args:
        meter: Gets the waits; None: the original function is put back.
        counts: Cleared when an epoch begins.
    """
    if meter is None:
        transformers.trainer.skip_first_batches = _skip_first_batches
        return

    def skip_first_batches(loader: Any, num_batches: int = 0) -> Any:
        remaining = _skip_first_batches(loader, num_batches)
        time_data_loader(remaining, meter, counts)
        return remaining

    transformers.trainer.skip_first_batches = skip_first_batches


def time_data_loader(loader: Any, meter: StepMeter, counts: BatchCounts | None) -> None:
    """Time the waits for the next batch, without the copy to the device that accelerate makes around them.

    Args:
        loader: accelerate's data loader; any other is left as it is.
        meter: Gets the waits.
        counts: Cleared when an epoch begins.
    """
    inner = getattr(loader, "base_dataloader", None)
    if inner is None:
        return
    begin = type(inner).__iter__

    def timed() -> Iterator[Any]:
        if counts is not None:
            counts.clear()  # an epoch that ended early leaves batches that were never computed
        iterator = begin(inner)
        while True:
            started = time.perf_counter_ns()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                meter.add_data_wait(time.perf_counter_ns() - started)
            yield batch

    inner.__iter__ = timed  # accelerate looks for __iter__ on the instance
