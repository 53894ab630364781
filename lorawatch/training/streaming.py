"""Turns tokens, as they come, into text that is safe for a terminal: whole characters, no control sequences."""

from __future__ import annotations

import re
from collections.abc import Callable

from lorawatch.text.sanitize import clean

# The start of a control sequence at the end of a text; the next piece may complete it.
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b\]|\x9d)[^\x07\x1b\x9c\x9d\n]*\x1b?|\x1b)\Z",
)
_LONGEST = 4096
"""An unfinished sequence is held back up to this many characters; a longer one is shown as plain text."""


class SafeStream:
    """Cleans text that comes in pieces, also where a control sequence is cut between two pieces.

    The pieces that it returns add up to `sanitize.clean` of the whole text, unless a sequence is longer than 4096
    characters.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The text of this and earlier pieces that can be shown now."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        if unfinished is None or len(text) - unfinished.start() > _LONGEST:
            self._held = ""
            return clean(text)
        self._held = text[unfinished.start() :]
        return clean(text[: unfinished.start()])

    def end(self) -> str:
        """The rest, after the last piece."""
        text, self._held = self._held, ""
        return clean(text)


class TokenText:
    """Decodes tokens one by one. A character may take several tokens, and a token's text may depend on the token before
    it.

    Args:
        decode: Returns the text of token ids.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # tokens are decoded from here, so that the first new one has the token before it
        self._done = 0  # the text of the tokens before this one was returned

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        self._ids.append(token)
        text = self._undelivered()
        if not text or text.endswith("\ufffd"):  # a character is not complete
            return ""
        self._context, self._done = self._done, len(self._ids)
        return text

    def end(self) -> str:
        """The rest, after the last token."""
        text = self._undelivered()
        self._done = len(self._ids)
        return text

    def _undelivered(self) -> str:
        known = self._decode(self._ids[self._context : self._done])
        return self._decode(self._ids[self._context :])[len(known) :]
