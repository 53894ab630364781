"""Text from outside becomes harmless here: names, messages and details never carry terminal control sequences."""

from __future__ import annotations

import re
from typing import Any

# CSI and OSC sequences whole; then lone control characters (C0 but newline and tab, DEL, C1), and the Unicode marks that
# reorder the text around them.
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[@-_]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
    r"|[\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Text without control sequences; newlines and tabs stay."""
    return text if text.isascii() and text.isprintable() else _CONTROL.sub("", text)


def cleaned(value: Any) -> Any:
    """Plain data (as JSON gives it) with every text and every key in it clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(k)): cleaned(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(v) for v in value]
    return value
