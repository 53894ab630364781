"""The meter on the host's clock, and on a GPU's with events that the test completes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from lorawatch.training.meter import StepMeter


def test_durations_add_up_to_the_wall_time_and_marks_leave_gaps_out() -> None:
    meter = StepMeter(torch.device("cpu"))
    before_mark = time.perf_counter()
    meter.mark()
    after_mark = time.perf_counter()
    for step in range(1, 6):
        time.sleep(0.002)
        before_end = time.perf_counter()
        meter.end_step(step)
    after_end = time.perf_counter()
    readings = meter.poll()
    assert [r.step for r in readings] == [1, 2, 3, 4, 5]
    assert before_end - after_mark <= sum(r.duration_s for r in readings) <= after_end - before_mark
    assert readings[-1].ended_at == pytest.approx(time.time(), abs=10)
    time.sleep(0.05)  # an evaluation
    before_mark = time.perf_counter()
    meter.mark()
    meter.end_step(6)
    (after,) = meter.poll()
    assert after.duration_s <= time.perf_counter() - before_mark
    assert meter.poll() == []


def test_micro_batches_add_up_and_a_step_starts_anew() -> None:
    meter = StepMeter(torch.device("cpu"))
    meter.add_data_wait(2_000_000)
    meter.add_batch(8, nonpad=torch.tensor(6), labels=torch.tensor(3), loss_sum=torch.tensor(6.0))
    meter.add_batch(8, nonpad=torch.tensor(8), labels=torch.tensor(1), loss_sum=torch.tensor(4.0))
    meter.set_grad_norm(torch.tensor(0.5))
    meter.end_step(1, 1e-3)
    meter.end_step(2)
    first, second = meter.poll()
    assert (first.tokens, first.nonpad_tokens, first.label_tokens) == (16, 14, 4)
    assert (first.loss, first.grad_norm, first.learning_rate, first.data_wait_s) == (2.5, 0.5, 1e-3, 0.002)
    assert (second.tokens, second.loss, second.grad_norm, second.data_wait_s) == (None, None, None, None)


class FakeEvent:
    """A CUDA event on a clock that the test turns."""

    gpu_s = 0.0

    def __init__(self, **_: Any) -> None:
        self.at = float("inf")
        self.done = False

    def record(self, stream: Any) -> None:
        self.at = float("inf")

    def complete(self, at: float) -> None:
        self.at, self.done = at, True

    def query(self) -> bool:
        return self.done

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


@pytest.fixture
def gpu_meter(monkeypatch: pytest.MonkeyPatch) -> StepMeter:
    """A meter that believes in a GPU: events of the test, plain memory for pinned memory."""
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(
        torch.cuda.memory,
        "memory_stats_as_nested_dict",
        lambda device: {"allocated_bytes": {"all": {"peak": 7}}, "reserved_bytes": {"all": {"peak": 9}}},
    )
    return StepMeter(torch.device("cuda", 0))


def test_gpu_steps_are_read_in_order_once_their_events_have_completed(gpu_meter: StepMeter) -> None:
    now = time.time()
    gpu_meter.mark()
    for step in (1, 2, 3):
        gpu_meter.add_batch(4, nonpad=3, labels=torch.tensor(2), loss_sum=torch.tensor(1.0 * step))
        gpu_meter.set_grad_norm(torch.tensor(0.25))
        gpu_meter.end_step(step)
    events: list[Any] = [mark.event for mark in gpu_meter._marks]
    assert gpu_meter.poll() == []
    events[0].complete(100.0)
    events[1].complete(100.0 + 1e-3)
    (first,) = gpu_meter.poll()
    assert (first.step, first.loss, first.grad_norm, first.nonpad_tokens, first.label_tokens) == (1, 0.5, 0.25, 3, 2)
    assert first.duration_s == pytest.approx(1e-3, rel=1e-6)
    assert (first.memory_allocated_bytes, first.memory_reserved_bytes) == (7, 9)
    events[2].complete(100.0 + 3e-3)
    events[3].complete(100.0 + 6e-3)
    second, third = gpu_meter.poll()
    assert second.duration_s + third.duration_s == pytest.approx(5e-3, rel=1e-6)
    assert now <= first.ended_at <= second.ended_at <= third.ended_at <= time.time()
    assert gpu_meter.waiting == 0


def test_gpu_marks_leave_gaps_out(gpu_meter: StepMeter) -> None:
    gpu_meter.mark()
    gpu_meter.end_step(1)
    gpu_meter.mark()  # an evaluation has ended
    gpu_meter.end_step(2)
    for mark, at in zip(list(gpu_meter._marks), (0.0, 0.010, 0.500, 0.512), strict=True):
        event: Any = mark.event
        event.complete(at)
    assert [r.duration_s for r in gpu_meter.poll()] == [pytest.approx(0.010), pytest.approx(0.012)]


def test_a_gpu_that_runs_far_ahead_of_the_reader_loses_losses_but_no_times(gpu_meter: StepMeter) -> None:
    gpu_meter.mark()
    for step in range(1, 301):
        gpu_meter.add_batch(1, labels=1, loss_sum=torch.tensor(float(step)))
        gpu_meter.end_step(step)
    for number, mark in enumerate(list(gpu_meter._marks)):
        event: Any = mark.event
        event.complete(number * 1e-3)
    readings = gpu_meter.poll()
    assert [r.step for r in readings] == list(range(1, 301))
    assert [r.loss for r in readings[:256]] == [float(s) for s in range(1, 257)]
    assert all(r.loss is None for r in readings[256:])
    gpu_meter.add_batch(1, labels=1, loss_sum=torch.tensor(5.0))
    gpu_meter.end_step(301)
    last: Any = gpu_meter._marks[0].event
    last.complete(1.0)
    assert gpu_meter.poll()[0].loss == 5.0  # slots are free again
