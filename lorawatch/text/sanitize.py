"""Text from outside becomes harmless here: names, messages and details never carry terminal control sequences."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_REORDER = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""The Unicode marks that reorder the text around them."""
# CSI and OSC sequences whole, and an OSC without an end by its beginning only, so that it hides nothing of what follows;
# then lone control characters (C0 but newline and tab, DEL, C1).
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)(?:[^\x07\x1b\x9c\x9d\n]*(?:\x07|\x1b\\|\x9c))?"
    r"|\x1b[@-_]"
    rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{_REORDER}]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSAFE_IN_JSON = re.compile(rf"[\x7f-\x9f{_REORDER}]")


def clean(text: str) -> str:
    """Text without control sequences; newlines and tabs stay, and what is no letter in UTF-8 is spelled out."""
    return text if text.isascii() and text.isprintable() else encodable(_CONTROL.sub("", text))


def cleaned(value: Any) -> Any:
    """Plain data (as JSON gives it) with every text and every key in it clean."""
    return _each_text(value, clean)


def encodable(text: str) -> str:
    r"""Text that UTF-8 can hold: a byte of a name that is no UTF-8 becomes `\xNN`, as the shell writes it."""
    return _SURROGATE.sub(_spelled, text)


def json_text(value: Any, enc_hook: Callable[[Any], Any] | None = None) -> str:
    """A value as one line of JSON that a terminal can be given: what would control it is escaped, and nothing is lost.

    Args:
        enc_hook: As of `msgspec.json.encode`.
    """
    import msgspec

    try:
        data = msgspec.json.encode(value, enc_hook=enc_hook)
    except UnicodeEncodeError:  # a path of bytes that are no UTF-8
        data = msgspec.json.encode(_each_text(msgspec.to_builtins(value, enc_hook=enc_hook), encodable))
    return escaped_json(data.decode())


def escaped_json(text: str) -> str:
    """JSON, as any library writes it, with what would control a terminal escaped."""
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _spelled(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(k)): _each_text(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(v, change) for v in value]
    return value
