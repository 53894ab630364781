"""How a rank ended: the failure that an exception stands for, and the rank's exit record."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lorawatch.errors import LorawatchError, LossNotFinite
from lorawatch.run.records import ExitRecord, Failure
from lorawatch.system.files import Reserve
from lorawatch.text.masking import mask_output
from lorawatch.text.sanitize import encodable
from lorawatch.training.rank_info import RankInfo

_RESERVED_BYTES = 32 << 10
_TRACEBACK_CHARACTERS = 20_000

# Texts of errors that have no class of their own; compared in lower case, in this order.
_TEXTS: tuple[tuple[Failure, tuple[str, ...]], ...] = (
    ("cuda_oom", ("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc_failed")),
    ("host_oom", ("can't allocate memory", "cannot allocate memory", "not enough memory: you tried to allocate")),
    ("disk_full", ("no space left on device", "disk quota exceeded")),
    (
        "gpu_lost",
        (
            "uncorrectable ecc",
            "fallen off the bus",
            "gpu is lost",
            "device is lost",
            "unspecified launch failure",
            "hardware stack error",
        ),
    ),
    (
        "nccl_timeout",
        (
            "nccl",
            "watchdog caught collective",
            "connection closed by peer",
            "connection reset by peer",
            "socket timeout",
            "timed out waiting",
        ),
    ),
)
_COMMUNICATION_CLASSES = ("DistBackendError", "DistNetworkError", "DistStoreError")


@dataclass(frozen=True)
class FailureInfo:
    """The failure that an exception stands for.

    Attributes:
        failure: The recorder's word for it.
        hint: What to do, where that is known.
        exit_code: The process's exit status, where it is not 1.
    """

    failure: Failure
    hint: str | None = None
    exit_code: int | None = None


def classify(error: BaseException, out_of_memory_hint: Callable[[], str] | None = None) -> FailureInfo:
    """Find the failure that an exception stands for.

    A rank whose peer died fails in its next collective. That is `nccl_timeout` here, on gloo too, with a hint to read
    the other ranks' logs. It is only a consequence where another rank has another failure.

    Args:
        error: The exception that ended the rank.
        out_of_memory_hint: Returns what to change where a GPU's memory ran out; None: the run's needs are not known.
    """
    if isinstance(error, LossNotFinite):
        return FailureInfo("nan_loss", error.hint, error.exit_code)
    if isinstance(error, LorawatchError):
        return FailureInfo("python_exception", error.hint, error.exit_code)
    name = type(error).__name__
    text = str(error).lower()
    if name == "OutOfMemoryError":
        return FailureInfo("cuda_oom", _oom_hint(str(error), out_of_memory_hint))
    if isinstance(error, MemoryError):
        return FailureInfo("host_oom", "the host's memory is full: fewer ranks, or a smaller model.dtype")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FailureInfo("disk_full", "free some space where LORAWATCH_HOME lies, or set it to another disk")
    failure: Failure = "nccl_timeout" if name in _COMMUNICATION_CLASSES else "python_exception"
    if isinstance(error, (RuntimeError, OSError)) or type(error).__module__.partition(".")[0] == "safetensors_rust":
        failure = next((f for f, texts in _TEXTS if any(t in text for t in texts)), failure)
    if failure == "cuda_oom":
        return FailureInfo(failure, _oom_hint(str(error), out_of_memory_hint))
    hints: dict[Failure, str] = {
        "host_oom": "the host's memory is full: fewer ranks, or a smaller model.dtype",
        "disk_full": "free some space where LORAWATCH_HOME lies, or set it to another disk",
        "gpu_lost": "the driver lost the GPU: see dmesg for an Xid line, and reset the GPU or the host",
        "nccl_timeout": "a collective failed: another rank ended or hung first, see the other ranks' logs",
    }
    return FailureInfo(failure, hints.get(failure))


def _oom_hint(text: str, out_of_memory_hint: Callable[[], str] | None) -> str:
    wanted = re.search(r"tried to allocate ([\d.]+ [KMGT]?i?B)", text, re.IGNORECASE)
    free = re.search(r"of which ([\d.]+ [KMGT]?i?B) is free", text, re.IGNORECASE)
    figures = f"it wanted {wanted[1]}" + (f" where {free[1]} was free" if free else "") + ": " if wanted else ""
    advice = "lower train.batch_size_per_gpu or data.sequence_length"
    with contextlib.suppress(Exception):  # an error of the driver must not hide the error that ended the run
        advice = out_of_memory_hint() if out_of_memory_hint else advice
    return figures + advice


class ExitReport:
    """A rank's exit record. The first end counts, and the record is written once, when the rank leaves.

    Disk space for the record is reserved at the start, so that a rank that ends because the disk is full can still
    write it.

    Args:
        path: Where it is written.
        rank_info: Which rank this is.
    """

    def __init__(self, path: Path, rank_info: RankInfo) -> None:
        self._rank_info = rank_info
        self._lock = threading.Lock()
        self._record: ExitRecord | None = None
        self._written = False
        self._reserve = Reserve(path, _RESERVED_BYTES)
        self.step = 0
        """The last step that the rank completed."""
        self.out_of_memory_hint: Callable[[], str] | None = None
        """Returns what to change where a GPU's memory ran out; set once the run's needs are known."""

    def ended(self, status: Literal["completed", "stopped"], *, signal: int | None = None) -> None:
        """The rank ended as asked.

        Args:
            status: How.
            signal: The signal that asked for it.
        """
        record = self._new(status)
        record.signal = signal
        self._keep(record)

    def failed(self, error: BaseException) -> int:
        """The rank failed.

        Args:
            error: The exception that ended it.

        Returns:
            The process's exit status.
        """
        verdict = classify(error, self.out_of_memory_hint)
        record = self._new("failed")
        record.failure = verdict.failure
        message = error.message if isinstance(error, LorawatchError) else str(error)
        if verdict.failure == "cuda_oom":
            # The rest is PyTorch's own accounting and advice, which the traceback has too.
            message = message.partition("Including non-PyTorch memory")[0]
        record.exception = _safe_text(f"{type(error).__name__}: {' '.join(message.split())}"[:2000])
        record.traceback = _safe_text("".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:])
        record.hint = verdict.hint
        record.exit_code = verdict.exit_code
        self._keep(record)
        return verdict.exit_code or 1

    def write(self, *, steps_made: int, unwritten: int) -> None:
        """Write the record of the first end. Nothing is written where there was none, or a second time.

        Args:
            steps_made: Step lines that the rank made in this attempt.
            unwritten: Journal lines that the disk did not take.
        """
        with self._lock:
            if self._record is None or self._written:
                return
            self._written = True
            self._record.steps_made, self._record.unwritten = steps_made, unwritten
            with contextlib.suppress(OSError):
                self._reserve.write(msgspec.json.encode(self._record))
            self._reserve.release()

    def _new(self, status: Literal["completed", "stopped", "failed"]) -> ExitRecord:
        return ExitRecord(
            rank=self._rank_info.rank, attempt=self._rank_info.attempt, at=time.time(), status=status, step=self.step
        )

    def _keep(self, record: ExitRecord) -> None:
        with self._lock:
            self._record = self._record or record


def _safe_text(text: str) -> str:
    """An error's text as a file may keep it: UTF-8, and without the secrets of this program's command line."""
    return encodable(mask_output(text, sys.argv))
