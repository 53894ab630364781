"""Tokens as they come, turned into text that a terminal can be given: whole letters, no control sequences."""

from __future__ import annotations

import re
from collections.abc import Callable

from lorawatch.text.sanitize import clean

# The beginning of a control sequence at the end of a text: the next piece may complete it.
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\x9d\n]*\x1b?|\x1b)\Z",
)
_LONGEST = 4096
"""Characters of an unfinished sequence that are held back; what comes after so many is shown, as plain text."""


class SafeStream:
    """Cleans text that comes in pieces, a control sequence cut between two of them included.

    All that it gives out together is `sanitize.clean` of all that it was given, unless a sequence is longer than 4096
    characters.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The part of this and earlier pieces that can be shown now."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        if unfinished is None or len(text) - unfinished.start() > _LONGEST:
            self._held = ""
            return clean(text)
        self._held = text[unfinished.start() :]
        return clean(text[: unfinished.start()])

    def end(self) -> str:
        """What is left, once no piece will come."""
        text, self._held = self._held, ""
        return clean(text)


class TokenText:
    """Decodes tokens one by one. A letter may take several, and how a token is written may depend on the one before it.

    Args:
        decode: Text of token ids.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # from here on tokens are decoded, so that the first new one has its neighbour
        self._done = 0  # up to here they are given out

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self._undelivered()
        if not text or text.endswith("\ufffd"):  # within a letter
            return ""
        self._context, self._done = self._done, len(self._ids)
        return text

    def end(self) -> str:
        """What is left, once no token will come."""
        text = self._undelivered()
        self._done = len(self._ids)
        return text

    def _undelivered(self) -> str:
        known = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context :])[len(known) :]
