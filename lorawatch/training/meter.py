"""Measures a rank's steps without disturbing them: no synchronisation, no collective, no value fetched from the GPU.

On a GPU a CUDA event marks the end of a step, and its loss and gradient norm are copied into pinned memory behind the
event. A side thread reads both once the event has completed. On the CPU everything is known at once.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

# How many steps' values can wait for the side thread. A step beyond that keeps its time and loses its loss.
_SLOTS = 256


@dataclass(frozen=True)
class Reading:
    """One measured step. The fields are those of `records.Step`."""

    step: int
    ended_at: float
    duration_s: float
    tokens: int | None
    nonpad_tokens: int | None
    label_tokens: int | None
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    data_wait_s: float | None
    memory_allocated_bytes: int | None
    memory_reserved_bytes: int | None


@dataclass
class _StepTotals:
    """Totals of the running step. Counts are numbers, or INT64 tensors of shape () on the device; `loss_sum` is FP32 of
    shape ().
    """

    tokens: int | None = None
    nonpad: Any = None
    labels: Any = None
    loss_sum: torch.Tensor | None = None
    grad_norm: torch.Tensor | float | None = None
    data_wait_ns: int | None = None


@dataclass
class _Mark:
    """A point in time on the GPU: the end of a step, or the moment from which the next step's time runs."""

    event: torch.cuda.Event
    recorded_at: float
    step: int | None = None
    batches: _StepTotals = field(default_factory=_StepTotals)
    learning_rate: float | None = None
    slot: int | None = None


class StepMeter:
    """Measures one rank's steps on one device.

    The main thread calls `mark`, `add_batch` and `end_step`; the side thread calls `poll`. A step's time runs from the
    end of the step before, or from the last `mark`, so that durations add up to the wall time between two marks.

    Args:
        device: Where the rank trains. Other devices than CUDA are timed on the host's clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._now = _StepTotals()
        self._ready: deque[Reading] = deque()
        self._marks: deque[_Mark] = deque()
        self._base_ns = time.perf_counter_ns()
        # Of the side thread: the last completed event with its Unix time, and the event from which the next step's time runs.
        self._last: tuple[torch.cuda.Event, float] | None = None
        self._base: torch.cuda.Event | None = None
        self._not_done_at = 0.0
        self._events: deque[torch.cuda.Event] = deque()
        if self._cuda:
            self._floats = torch.empty((_SLOTS, 2), dtype=torch.float32, pin_memory=True)
            self._counts = torch.empty((_SLOTS, 2), dtype=torch.int64, pin_memory=True)
            # Views are made once, because indexing a tensor takes microseconds on the main thread.
            self._float_cells = [tuple(row.unbind()) for row in self._floats.unbind()]
            self._count_cells = [tuple(row.unbind()) for row in self._counts.unbind()]
            self._free: deque[int] = deque(range(_SLOTS))

    def mark(self) -> None:
        """Let the next step's time run from here: training begins, or an evaluation or a checkpoint has ended."""
        if self._cuda:
            self._marks.append(self._record())
        self._base_ns = time.perf_counter_ns()

    def add_batch(
        self,
        tokens: int | None,
        *,
        nonpad: torch.Tensor | int | None = None,
        labels: torch.Tensor | int | None = None,
        loss_sum: torch.Tensor | None = None,
    ) -> None:
        """Add a forward pass to the running step. The micro-batches of a step add up.

        Args:
            tokens: Positions, padding included.
            nonpad: Positions that hold a token: a number, or an integer tensor of shape () on the device.
            labels: Positions that the loss is taken over, likewise.
            loss_sum: Sum of their losses: a detached floating-point tensor of shape (), with its own memory.
        """
        now = self._now
        now.tokens = _add(now.tokens, tokens)
        now.nonpad = _add(now.nonpad, nonpad)
        now.labels = _add(now.labels, labels)
        now.loss_sum = _add(now.loss_sum, loss_sum)

    def add_data_wait(self, nanoseconds: int) -> None:
        """Add time, in nanoseconds, that the main thread waited for the data loader."""
        self._now.data_wait_ns = (self._now.data_wait_ns or 0) + nanoseconds

    def set_grad_norm(self, norm: torch.Tensor | float | None) -> None:
        """Set the running step's gradient norm before clipping: a number, or a floating-point tensor of shape () on the
        device.
        """
        self._now.grad_norm = norm

    def end_step(self, step: int, learning_rate: float | None = None) -> None:
        """End the step. On a GPU all of its work is queued.

        Args:
            step: Its number, from 1.
            learning_rate: The optimizer's in this step.
        """
        now, self._now = self._now, _StepTotals()
        if not self._cuda:
            self._end_on_host(step, now, learning_rate)
            return
        slot = self._free.popleft() if self._free else None
        if slot is not None:
            loss_cell, norm_cell = self._float_cells[slot]
            nonpad_cell, labels_cell = self._count_cells[slot]
            if now.loss_sum is not None:
                loss_cell.copy_(now.loss_sum, non_blocking=True)
            if isinstance(now.grad_norm, torch.Tensor):
                norm_cell.copy_(now.grad_norm.detach().float(), non_blocking=True)
            if isinstance(now.nonpad, torch.Tensor):
                nonpad_cell.copy_(now.nonpad, non_blocking=True)
            if isinstance(now.labels, torch.Tensor):
                labels_cell.copy_(now.labels, non_blocking=True)
        mark = self._record()
        mark.step, mark.batches, mark.learning_rate, mark.slot = step, now, learning_rate, slot
        self._marks.append(mark)

    @property
    def waiting(self) -> int:
        """Events that the side thread has not read yet."""
        return len(self._marks)

    def poll(self) -> list[Reading]:
        """The steps that have ended since the last call, in order. For the side thread; it never waits for the GPU."""
        if not self._cuda:
            return [self._ready.popleft() for _ in range(len(self._ready))]
        readings: list[Reading] = []
        memory: tuple[int | None, int | None] | None = None
        while self._marks:
            head = self._marks[0]
            looked_at = time.time()
            if not head.event.query():  # type: ignore[no-untyped-call]
                self._not_done_at = looked_at
                break
            self._marks.popleft()
            ended_at = self._unix_time(head)
            if head.step is not None:
                memory = memory or self._memory()
                base = self._base or head.event
                readings.append(self._read(head, base.elapsed_time(head.event) / 1e3, ended_at, memory))
            if self._base is not None:
                self._events.append(self._base)
            self._last, self._base = (head.event, ended_at), head.event
        return readings

    def drain(self, timeout_s: float = 10.0) -> list[Reading]:
        """The remaining steps, after training. Polls until all have ended or the time is over."""
        readings = self.poll()
        deadline = time.monotonic() + timeout_s
        while self.waiting and time.monotonic() < deadline:
            time.sleep(0.005)
            readings += self.poll()
        return readings

    def _record(self) -> _Mark:
        # Events are reused: making one costs the main thread more than recording it.
        event = self._events.popleft() if self._events else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return _Mark(event, time.time())

    def _unix_time(self, mark: _Mark) -> float:
        """When an event completed, in seconds of Unix time.

        It is the time of the event before plus what the GPU measured between the two, limited to the interval between
        the last moment at which the event had not completed and now.
        """
        earliest = max(mark.recorded_at, self._not_done_at)
        if self._last is None:
            return earliest
        event, at = self._last
        return min(max(at + float(event.elapsed_time(mark.event)) / 1e3, earliest), time.time())

    def _read(self, mark: _Mark, duration_s: float, ended_at: float, memory: tuple[int | None, int | None]) -> Reading:
        seen = mark.batches
        loss_sum = grad_norm = None
        nonpad, labels = seen.nonpad, seen.labels
        if mark.slot is not None:
            floats, counts = self._floats[mark.slot].tolist(), self._counts[mark.slot].tolist()
            loss_sum = floats[0] if seen.loss_sum is not None else None
            grad_norm = floats[1] if isinstance(seen.grad_norm, torch.Tensor) else None
            nonpad = counts[0] if isinstance(nonpad, torch.Tensor) else nonpad
            labels = counts[1] if isinstance(labels, torch.Tensor) else labels
            self._free.append(mark.slot)
        if isinstance(seen.grad_norm, float):
            grad_norm = seen.grad_norm
        return _reading(mark.step or 0, ended_at, duration_s, seen, nonpad, labels, loss_sum, grad_norm,
                        mark.learning_rate, memory)  # fmt: skip

    def _memory(self) -> tuple[int | None, int | None]:
        # The allocator returns the nested form; flattening it costs ten times more.
        stats = torch.cuda.memory.memory_stats_as_nested_dict(self.device)
        try:
            return stats["allocated_bytes"]["all"]["peak"], stats["reserved_bytes"]["all"]["peak"]
        except KeyError:  # nothing was allocated yet, or another allocator is in use
            return None, None

    def _end_on_host(self, step: int, seen: _StepTotals, learning_rate: float | None) -> None:
        now_ns = time.perf_counter_ns()
        duration_s = (now_ns - self._base_ns) / 1e9
        self._base_ns = now_ns
        self._ready.append(
            _reading(step, time.time(), duration_s, seen, _number(seen.nonpad, int), _number(seen.labels, int),
                     _number(seen.loss_sum, float), _number(seen.grad_norm, float), learning_rate, (None, None))
        )  # fmt: skip


def _reading(
    step: int,
    ended_at: float,
    duration_s: float,
    seen: _StepTotals,
    nonpad: int | None,
    labels: int | None,
    loss_sum: float | None,
    grad_norm: float | None,
    learning_rate: float | None,
    memory: tuple[int | None, int | None],
) -> Reading:
    return Reading(
        step=step,
        ended_at=ended_at,
        duration_s=duration_s,
        tokens=seen.tokens,
        nonpad_tokens=nonpad if isinstance(nonpad, int) else None,
        label_tokens=labels if isinstance(labels, int) else None,
        loss=loss_sum / labels if loss_sum is not None and isinstance(labels, int) and labels else None,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        data_wait_s=None if seen.data_wait_ns is None else seen.data_wait_ns / 1e9,
        memory_allocated_bytes=memory[0],
        memory_reserved_bytes=memory[1],
    )


def _add(total: Any, more: Any) -> Any:
    if more is None:
        return total
    return more if total is None else total + more


def _number(value: Any, kind: type) -> Any:
    """A value on the host. A tensor on the CPU is read without waiting."""
    return None if value is None else kind(value)
