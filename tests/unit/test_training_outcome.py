"""How an exception becomes a failure that people understand, and the record of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lorawatch.analysis.memory import CUDA_CONTEXT_BYTES, DRIVER_BYTES, estimate
from lorawatch.errors import DataError, ModelNotFound
from lorawatch.models import memory
from lorawatch.recipe import loading
from lorawatch.run.records import ExitRecord, Failure
from lorawatch.system.files import read_json
from lorawatch.training import gpu_memory
from lorawatch.training.outcome import ExitReport, classify
from lorawatch.training.rank_info import RankInfo

OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 1.31 GiB is free."
)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (torch.cuda.OutOfMemoryError(OOM), "cuda_oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda_oom"),
        (MemoryError(), "host_oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), "host_oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (torch.distributed.DistBackendError("whatever"), "nccl_timeout"),
        (RuntimeError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"), "nccl_timeout"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.1]:3"), "nccl_timeout"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "gpu_lost"),
        (RuntimeError("CUDA error: unspecified launch failure"), "gpu_lost"),
        (RuntimeError("CUDA error: device-side assert triggered"), "python_exception"),
        (ValueError("the NCCL of it all"), "python_exception"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "python_exception"),
    ],
)
def test_classes_of_failure(error: BaseException, failure: Failure) -> None:
    assert classify(error).failure == failure


def test_the_memory_hint_says_how_much_was_wanted() -> None:
    hint = classify(torch.cuda.OutOfMemoryError(OOM)).hint
    assert hint == (
        "it wanted 2.00 GiB where 1.31 GiB was free: lower train.batch_size_per_gpu or data.sequence_length"
    )


def test_where_it_is_known_what_the_run_needs_the_hint_says_what_would_fit(tmp_path: Path) -> None:
    report = ExitReport(tmp_path / "e.json", RankInfo())
    report.out_of_memory_hint = lambda: "what would fit: a smaller batch"
    books = " Including non-PyTorch memory, this process has 77.8 GiB memory in use. If reserved but unallocated …"
    assert report.failed(torch.cuda.OutOfMemoryError(OOM + books)) == 1
    report.write(steps_made=0, unwritten=0)
    record = read_json(tmp_path / "e.json", ExitRecord)
    assert record is not None
    assert record.hint == "it wanted 2.00 GiB where 1.31 GiB was free: what would fit: a smaller batch"
    assert record.exception == f"OutOfMemoryError: {OOM}"
    assert "this process has 77.8 GiB" in (record.traceback or "")


def test_a_driver_that_cannot_be_asked_any_more_leaves_the_hint_general() -> None:
    def broken() -> str:
        raise RuntimeError("CUDA error: unspecified launch failure")

    hint = classify(torch.cuda.OutOfMemoryError(OOM), broken).hint
    assert (hint or "").endswith(": lower train.batch_size_per_gpu or data.sequence_length")


def test_what_a_run_may_have_is_what_others_leave_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, device = 2**30, torch.device("cuda", 0)
    recipe = loading.load("exxact-8b", ["train.batch_size_per_gpu=8"])
    held = {"reserved": 70 * gib, "free": 8 * gib}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (held["free"], 79 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held["reserved"])
    assert gpu_memory.total_and_other_bytes(1, device) == (79 * gib + DRIVER_BYTES, 0)
    # Half of the card is another's: of what is left the run's own context is its own.
    held.update(reserved=35 * gib, free=gib // 2)
    total, others = gpu_memory.total_and_other_bytes(1, device)
    assert others == 79 * gib - gib // 2 - 35 * gib - CUDA_CONTEXT_BYTES
    needed = estimate(memory.workload(recipe))
    words = gpu_memory.out_of_memory_hint(recipe, 1, device)
    assert words.startswith(
        f"the run needs about {needed.device_bytes / gib:.1f} GiB, and {(total - others) / gib:.1f} GiB are available; "
        "what would fit: train.batch_size_per_gpu 5 instead of 8: "
    )
    assert "; or train.gradient_checkpointing true: " in words
    assert words.endswith(
        f"; other processes hold {others / gib:.1f} of the GPU's {total / gib:.1f} GiB (nvidia-smi lists them)"
    )


def test_a_failure_is_recorded_once_with_message_hint_and_status(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "rank-1.exit.json"
    report = ExitReport(path, RankInfo(rank=1, world_size=2, attempt=3))
    report.step = 7
    try:
        raise ModelNotFound("model 'x' is nowhere", hint="fetch it")
    except ModelNotFound as error:
        assert report.failed(error) == 3
    report.ended("stopped", signal=15)  # the agent's SIGTERM comes later and changes nothing
    report.write(steps_made=7, unwritten=2)
    report.write(steps_made=9, unwritten=9)
    record = read_json(path, ExitRecord)
    assert record is not None
    assert (record.rank, record.attempt, record.status, record.step) == (1, 3, "failed", 7)
    assert record.exception == "ModelNotFound: model 'x' is nowhere"
    assert (record.hint, record.exit_code) == ("fetch it", 3)
    assert (record.steps_made, record.unwritten, record.signal) == (7, 2, None)
    assert "test_a_failure_is_recorded_once" in (record.traceback or "")
    assert [p.name for p in path.parent.iterdir()] == ["rank-1.exit.json"]


def test_bad_input_ends_with_status_2(tmp_path: Path) -> None:
    assert ExitReport(tmp_path / "e.json", RankInfo()).failed(DataError("x")) == 2


def test_a_full_disk_still_takes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = ExitReport(tmp_path / "e.json", RankInfo())
    opened = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    report.failed(OSError(errno.ENOSPC, "No space left on device"))
    report.write(steps_made=3, unwritten=1)
    record = read_json(tmp_path / "e.json", ExitRecord)
    assert record is not None
    assert record.failure == "disk_full"
