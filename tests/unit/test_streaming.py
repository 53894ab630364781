"""An answer that comes in pieces is shown whole and harmless, wherever the pieces end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.text.sanitize import clean
from lorawatch.training.streaming import SafeStream, TokenText
from lorawatch.training.tokenization import byte_tokenizer

HOSTILE = [
    "\x1b",
    "[",
    "]",
    "0;",
    "31",
    "m",
    "\x07",
    "\\",
    "\x9b",
    "\x9d",
    "\x9c",
    " ",
    "a",
    "é",
    "\n",
    "\r",
    "\x08",
    "\u202e",
]


def shown(pieces: list[str]) -> list[str]:
    stream = SafeStream()
    return [*(stream.feed(piece) for piece in pieces), stream.end()]


@given(st.lists(st.sampled_from(HOSTILE), max_size=30))
def test_pieces_are_shown_as_their_whole_would_be(pieces: list[str]) -> None:
    assert "".join(shown(pieces)) == clean("".join(pieces))


@pytest.mark.parametrize(
    ("pieces", "each"),
    [
        (["a\x1b", "[3", "1m", "b"], ["a", "", "", "b", ""]),
        (["\x1b]0;ow", "ned", "\x07b"], ["", "", "b", ""]),
        (["\x1b]0;x\x1b", "\\b"], ["", "b", ""]),
        (["no ", "control"], ["no ", "control", ""]),
        (["the end\x1b["], ["the end", ""]),
    ],
)
def test_only_what_may_become_a_control_sequence_waits(pieces: list[str], each: list[str]) -> None:
    assert [*shown(pieces)[: len(each) - 1], "".join(shown(pieces)[len(each) - 1 :])] == each


def test_a_sequence_without_an_end_does_not_swallow_the_answer() -> None:
    stream = SafeStream()
    stream.feed("\x1b]" + "x" * 5000)
    assert stream.feed("still here") == "still here"


def test_letters_of_several_tokens_come_whole() -> None:
    tokenizer = byte_tokenizer()
    text = "né €\U0001f600!"
    tokens = TokenText(lambda ids: str(tokenizer.decode(ids)))
    pieces = [tokens.add(token) for token in tokenizer(text)["input_ids"]]
    assert [p for p in pieces if p] == list(text)
    assert tokens.end() == ""


def test_half_a_letter_at_the_end_is_shown_as_what_it_is() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a€")["input_ids"]
    tokens = TokenText(lambda t: str(tokenizer.decode(t)))
    assert [tokens.add(token) for token in ids[:-1]] == ["a", "", ""]
    assert tokens.end() == "\ufffd"


@given(st.lists(st.integers(3, 258), max_size=40))
def test_no_text_is_lost_or_said_twice(ids: list[int]) -> None:
    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens))

    tokenizer = byte_tokenizer()
    tokens = TokenText(decode)
    text = "".join(tokens.add(token) for token in ids) + tokens.end()
    # Bytes that are no UTF-8 may be counted as more or fewer unknown letters, but nothing else may change.
    assert text.replace("\ufffd", "") == decode(ids).replace("\ufffd", "")
