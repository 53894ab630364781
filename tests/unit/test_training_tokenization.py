"""What is learned of a row: chat, completions, text; cutting and dropping."""

from __future__ import annotations

from typing import Any

import pytest

from lorawatch.errors import DataError
from lorawatch.training.data import TokenizedData
from lorawatch.training.tokenization import Example, byte_tokenizer, encode


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def parts(example: Example, tokenizer: Any) -> tuple[str, str]:
    """All text, and the text that the loss is taken on."""
    assert len(example.ids) == len(example.learned)
    learned = [i for i, keep in zip(example.ids, example.learned, strict=True) if keep]
    return tokenizer.decode(example.ids), tokenizer.decode(learned)


def test_chat_learns_every_answer_and_its_end_and_nothing_else(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Größer: 3 or 5?"},
        {"role": "assistant", "content": " 5, of\ncourse"},
    ]
    text, learned = parts(encode({"messages": messages}, tokenizer, "f"), tokenizer)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False)
    assert learned == "4<|im_end|> 5, of\ncourse<|im_end|>"


def test_special_tokens_are_single_ids(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = encode({"messages": messages}, tokenizer, "f").ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ids.count(tokenizer.eos_token_id) == 2


def test_a_template_that_marks_the_answer_is_asked(tokenizer: Any) -> None:
    marked = byte_tokenizer()
    marked.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}."
        "{% endgeneration %}{% else %}U:{{ m['content'] }};{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]
    text, learned = parts(encode({"messages": messages * 2}, marked, "f"), marked)
    assert text == "U:q;A:one.U:q;A:one."
    assert learned == "one.one."


def test_a_template_that_rewrites_earlier_turns_learns_the_last(tokenizer: Any) -> None:
    forgetful = byte_tokenizer()
    forgetful.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}(cut){% endif %}|"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one"}]
    _, learned = parts(encode({"messages": messages * 2}, forgetful, "f"), forgetful)
    assert learned == "one|"


def test_sharegpt_names_of_roles(tokenizer: Any) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert parts(encode(row, tokenizer, "f"), tokenizer)[1] == "a<|im_end|>"


def test_completion_is_learned_with_its_end_and_without_template(tokenizer: Any) -> None:
    text, learned = parts(encode({"prompt": "say ", "completion": "hi"}, tokenizer, "f"), tokenizer)
    assert text == "say hi<|im_end|>"
    assert learned == "hi<|im_end|>"


def test_instruction_goes_through_the_template(tokenizer: Any) -> None:
    row = {"instruction": "Translate", "input": "Haus", "output": "house"}
    text, learned = parts(encode(row, tokenizer, "f"), tokenizer)
    assert text.startswith("<|im_start|>user\nTranslate\n\nHaus<|im_end|>")
    assert learned == "house<|im_end|>"


def test_text_is_learned_throughout(tokenizer: Any) -> None:
    assert parts(encode({"text": "all of it"}, tokenizer, "f"), tokenizer) == ("all of it<|im_end|>",) * 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x"}, "no field to train on (its fields: prompt)"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content"),
        ({"messages": [{"content": "x"}]}, "message 1 has no role"),
        ({"messages": ["x"]}, "message 1 is not a mapping"),
        ({"text": None}, "text is not text but NoneType"),
        ({"prompt": "x", "completion": 3}, "completion is not text but int"),
    ],
)
def test_rows_that_fit_no_form_name_their_place(row: dict[str, Any], says: str, tokenizer: Any) -> None:
    with pytest.raises(DataError) as error:
        encode(row, tokenizer, "chat.jsonl, line 7")
    assert says in error.value.message
    assert error.value.message.startswith("chat.jsonl, line 7: ")


def test_chat_without_a_template_says_what_to_do() -> None:
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        encode({"messages": [{"role": "user", "content": "x"}]}, bare, "f")
    learned = parts(encode({"question": "q", "answer": "a"}, bare, "f"), bare)[1]
    assert learned == "a<|im_end|>"


def test_long_rows_are_cut_and_rows_without_labels_dropped(tokenizer: Any) -> None:
    data = TokenizedData()
    data.add(Example([1, 2, 3, 4], [False, False, True, True]), 3)
    data.add(Example([1, 2, 3, 4], [False, False, False, True]), 3)
    data.add(Example([1, 2], [True, False]), 3)  # the first token is nobody's prediction
    data.add(Example([5, 6], [False, True]), 3)
    assert (len(data), data.cut, data.dropped, data.tokens) == (2, 2, 2, 5)
    assert data[0]["input_ids"].tolist() == [1, 2, 3]
    assert data[0]["labels"].tolist() == [-100, -100, 3]
    assert data[1]["labels"].tolist() == [-100, 6]
