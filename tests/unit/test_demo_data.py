"""The bundled chat data set: every row is a clean, short conversation that the demo's 128 tokens can hold."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from importlib import resources
from typing import Any

import pytest

# 1.4 tokens a word leaves room, in 128 tokens, for ChatML's marks and SmolLM2's default system message (about 30).
TOKENS_PER_WORD = 1.4
MAX_TOKENS = 100
ANSWER_WORDS = range(15, 46)


def read_lines() -> list[str]:
    text = (resources.files("lorawatch.assets") / "data" / "demo_chat.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    """The messages of each row."""
    return [json.loads(line)["messages"] for line in read_lines()]


def test_every_line_is_one_object_with_messages_only() -> None:
    for number, line in enumerate(read_lines(), start=1):
        row: Any = json.loads(line)
        assert isinstance(row, dict), f"line {number}"
        assert set(row) == {"messages"}, f"line {number}"
        for message in row["messages"]:
            assert set(message) == {"role", "content"}, f"line {number}"
            assert all(isinstance(value, str) for value in message.values()), f"line {number}"


def test_there_are_enough_pairs(conversations: list[list[dict[str, str]]]) -> None:
    assert len(conversations) >= 150


def test_roles_alternate_from_user_to_assistant(conversations: list[list[dict[str, str]]]) -> None:
    for messages in conversations:
        assert messages, "an empty conversation"
        assert len(messages) % 2 == 0, messages
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2), messages


def test_some_rows_have_several_turns(conversations: list[list[dict[str, str]]]) -> None:
    assert sum(len(messages) > 2 for messages in conversations) >= 3


def test_first_questions_are_unique(conversations: list[list[dict[str, str]]]) -> None:
    def plain(text: str) -> str:
        """Letters and digits only, so that a comma or a capital makes no new question."""
        return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())

    counts = Counter(plain(messages[0]["content"]) for messages in conversations)
    assert [question for question, count in counts.items() if count > 1] == []


def test_texts_are_trimmed_and_free_of_control_characters(conversations: list[list[dict[str, str]]]) -> None:
    for messages in conversations:
        for message in messages:
            text = message["content"]
            assert text, messages
            assert text == text.strip(), text
            # Cc: controls and line ends; Cf: invisible marks; Cs, Co, Cn: no characters at all
            assert [c for c in text if unicodedata.category(c).startswith("C")] == [], ascii(text)
            assert "<|" not in text, f"a chat template's mark inside a text: {text}"


def test_answers_are_plain_and_short(conversations: list[list[dict[str, str]]]) -> None:
    for messages in conversations:
        for message in messages[1::2]:
            assert len(message["content"].split()) in ANSWER_WORDS, message["content"]


def test_rows_fit_into_the_demos_sequence_length(conversations: list[list[dict[str, str]]]) -> None:
    for messages in conversations:
        words = sum(len(message["content"].split()) for message in messages)
        assert words * TOKENS_PER_WORD <= MAX_TOKENS, messages[0]["content"]


def test_the_answer_that_the_demo_is_shown_with(conversations: list[list[dict[str, str]]]) -> None:
    answers = {messages[0]["content"]: messages[1]["content"] for messages in conversations}
    assert answers["What is lorawatch?"] == (
        "lorawatch is a terminal program that launches, supervises, watches, records and compares multi-GPU LoRA "
        "fine-tuning runs."
    )
