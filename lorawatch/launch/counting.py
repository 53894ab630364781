"""How many tokens a data file has, counted by the model's own tokenizer in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lorawatch.errors import DataError, LorawatchError, UsageError
from lorawatch.sanitize import clean

BYTES_PER_TOKEN = 4.0
"""Of English text under the vocabularies of today's models, roughly; used where the tokenizer is not here."""
# What tells that the model is missing and not the data.
_NO_TOKENIZER = ("ModelNotFound", "MissingDependency")


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


def count_tokens(path: Path, model: str, sequence_length: int, *, timeout_s: float = 600.0) -> Counted:
    """Count a data file's tokens as training would see them; from its size where the tokenizer cannot be had.

    Raises:
        DataError: The file is missing, empty or broken; names file and line.
        UsageError: It takes longer than the timeout.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}", hint="give a data file")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lorawatch.training.counting", str(path), model, str(sequence_length)],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"{path}: counting its tokens took longer than {timeout_s:.0f} s", hint="give their number: --tokens 50M"
        ) from None
    except OSError as error:
        raise LorawatchError(f"the counting did not start: {error}") from None
    try:
        answer = msgspec.json.decode(done.stdout.strip().rpartition(b"\n")[2], type=_Answer)
    except msgspec.MsgspecError:
        answer = _Answer(error=done.stderr.decode(errors="replace").strip()[-300:] or "it ended", kind="ModelNotFound")
    if answer.error is None:
        said = f"{answer.tokens:,} tokens in {answer.rows:,} rows"
        said += f", {answer.cut:,} of them cut at {sequence_length}" if answer.cut else ""
        return Counted(answer.tokens, True, said + (f", {answer.dropped:,} dropped" if answer.dropped else ""))
    if answer.kind not in _NO_TOKENIZER:
        raise DataError(clean(answer.error), hint=clean(answer.hint) if answer.hint else None)
    tokens = max(int(path.stat().st_size / BYTES_PER_TOKEN), 1)
    return Counted(
        tokens, False, f"about {tokens:,} tokens, from its size: the tokenizer of {clean(model)} is not here"
    )
