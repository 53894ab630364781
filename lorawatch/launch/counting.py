"""How many tokens a data file has, counted by the model's own tokenizer in a process of its own."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lorawatch.errors import DataError, LorawatchError, UsageError
from lorawatch.system.interpreter import own_module
from lorawatch.system.permissions import users_umask
from lorawatch.text.sanitize import clean

BYTES_PER_TOKEN = 4.0
"""Of English text under the vocabularies of today's models, roughly; used where the tokenizer is not here."""
# Errors of a missing model, as against errors of the data.
_NO_TOKENIZER = ("ModelNotFound", "MissingDependency")
_CRASHED = "crashed"
_TEXTS = (".jsonl", ".json", ".csv", ".txt")
_LOOKED_AT = 1 << 16
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Counted:
    """A data file's size.

    Attributes:
        tokens: What one epoch trains on, each row cut at the sequence length.
        exact: Counted by the tokenizer, not from the file's size.
        words: For people.
    """

    tokens: int
    exact: bool
    words: str


class _Answer(msgspec.Struct):
    tokens: int = 0
    rows: int = 0
    cut: int = 0
    dropped: int = 0
    error: str | None = None
    hint: str | None = None
    kind: str = ""


def count_tokens(
    path: Path,
    model: str,
    sequence_length: int,
    *,
    timeout_s: float = 600.0,
    cancelled: threading.Event | None = None,
) -> Counted:
    """Count a data file's tokens as training would see them; from its size where the tokenizer cannot be had.

    Args:
        path: The data file.
        model: As a recipe names it; empty where it is not known.
        sequence_length: At which rows are cut.
        cancelled: Set by another thread, it ends the count.

    Raises:
        DataError: The file is missing, empty or broken; names file and line.
        UsageError: It takes longer than the timeout, or was cancelled.
    """
    where = clean(str(path))
    _check(path, where)
    try:
        process = subprocess.Popen(
            own_module("lorawatch.training.counting", str(path), model, str(sequence_length)),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=users_umask(),
        )  # fmt: skip
    except OSError as error:
        raise LorawatchError(f"the counting did not start: {error}") from None
    out, err = _finished(process, where, timeout_s, cancelled or threading.Event())
    try:
        answer = msgspec.json.decode(out.strip().rpartition(b"\n")[2], type=_Answer)
    except msgspec.MsgspecError:
        last = clean(err.decode(errors="replace").strip().rpartition("\n")[2])[:200]
        answer = _Answer(error=last or f"it ended with {process.returncode}", kind=_CRASHED)
    if answer.error is None and answer.tokens < 1:
        raise DataError(f"{where}: nothing is left to train on: every row is empty or dropped", hint="look at its rows")
    if answer.error is None:
        words = f"{answer.tokens:,} tokens in {answer.rows:,} rows"
        words += f", {answer.cut:,} of them cut at {sequence_length}" if answer.cut else ""
        return Counted(answer.tokens, True, words + (f", {answer.dropped:,} dropped" if answer.dropped else ""))
    if answer.kind not in (*_NO_TOKENIZER, _CRASHED):
        raise DataError(clean(answer.error), hint=clean(answer.hint) if answer.hint else None)
    tokens = max(int(path.stat().st_size / BYTES_PER_TOKEN), 1)
    why = f"the tokenizer of {clean(model)} is not here" if model else "the tokenizer is not known"
    if answer.kind == _CRASHED:
        why = f"counting them failed ({answer.error})"
    return Counted(tokens, False, f"about {tokens:,} tokens, from its size: {why}")


def _finished(
    process: subprocess.Popen[bytes], where: str, timeout_s: float, cancelled: threading.Event
) -> tuple[bytes, bytes]:
    """What the process wrote; ends it where the caller no longer waits for it.

    Raises:
        UsageError: It takes longer than the timeout, or was cancelled.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                return process.communicate(timeout=_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                if cancelled.is_set():
                    raise UsageError(f"{where}: the counting was cancelled") from None
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"{where}: counting its tokens took longer than {timeout_s:.0f} s",
                        hint="give their number: --tokens 50M",
                    ) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _check(path: Path, where: str) -> None:
    """See that it is a data file by its beginning, since its size would count for anything.

    Raises:
        DataError: It is none; names file and, where there is one, line.
    """
    hint = f"give a data file: {', '.join(_TEXTS)}, .parquet; or the number: --tokens 50M"
    if not path.is_file():
        raise DataError(f"{where}: {'a folder' if path.is_dir() else 'no such file'}", hint=hint)
    try:
        with open(path, "rb") as file:
            begin = file.read(_LOOKED_AT)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}", hint=hint) from None
    kind = path.suffix.lower()
    if kind == ".parquet":
        if not begin.startswith(b"PAR1"):
            raise DataError(f"{where}: not a Parquet file", hint=hint)
        return
    if kind not in _TEXTS:
        raise DataError(f"{where}: unknown kind of file {clean(kind)!r}", hint=hint)
    if not begin.strip():
        raise DataError(f"{where}: the data set is empty", hint=hint)
    try:
        # a block may end within a letter
        begin.decode("utf-8-sig") if len(begin) < _LOOKED_AT else begin[: begin.rfind(b"\n") + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = begin.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}, line {line}: not UTF-8 text", hint="convert it: iconv -t UTF-8") from None
