"""What the ranks of a run wrote last: the end of a run that no recorder watched to its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from lorawatch.recorder.logs import tail
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import line_decoder
from lorawatch.run.records import ExitRecord, LinesLost, Step


@dataclass(frozen=True)
class LastWords:
    """The end of what the ranks wrote.

    Attributes:
        step: The last step of any rank in the last attempt; 0 where none is named.
        at: When a rank wrote last, in unix seconds; None where none did.
    """

    step: int = 0
    at: float | None = None


def last_words(run: RunDir, records: Iterable[ExitRecord] = ()) -> LastWords:
    """Read the ends of the ranks' journals.

    Args:
        records: How the ranks of the last attempt ended, as far as they say.
    """
    attempt, step, at = 0, 0, 0.0
    for record in records:
        attempt, step, at = record.attempt, max(step, record.step), max(at, record.at)
    for path in run.journal.glob("rank-*.jsonl"):
        for text in tail(path).splitlines():
            try:
                line = line_decoder.decode(text)
            except msgspec.MsgspecError:  # the first is cut
                continue
            if isinstance(line, Step) and line.attempt >= attempt:
                step = line.step if line.attempt > attempt else max(step, line.step)
                attempt = line.attempt
            elif isinstance(line, LinesLost):
                step = max(step, line.last_step or 0)
            at = max(at, getattr(line, "ended_at", None) or getattr(line, "at", None) or 0.0)
    return LastWords(step, at or None)
