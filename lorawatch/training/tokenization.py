"""Turns rows into token ids and labels. Chats use the model's template, with the loss on the assistant's tokens only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorawatch.errors import DataError

IGNORED = -100
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_QUESTION_ANSWER = (("instruction", "output"), ("instruction", "response"), ("question", "answer"))
_PROMPT_COMPLETION = (("prompt", "completion"), ("prompt", "response"))
FORMS = (
    "messages (a list of {role, content}), prompt and completion, instruction (input) and output, "
    "question and answer, or text"
)


@dataclass(frozen=True)
class Example:
    """A tokenised row.

    Attributes:
        ids: Token ids.
        learned: For each of them, whether the loss is taken on it.
    """

    ids: list[int]
    learned: list[bool]


def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes and ChatML's special tokens, for models of which only the shape is known."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    text, start, end = specials
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=start, eos_token=end, pad_token=text)
    tokenizer.chat_template = CHATML
    return tokenizer


def encode(row: dict[str, Any], tokenizer: Any, where: str) -> Example:
    """Tokenise one row.

    In a chat the loss is taken on the assistant's messages and on the token that ends each. A prompt with a completion
    is used without a template, and the loss is taken on the completion and the end-of-sequence token. In a text it is
    taken everywhere.

    Args:
        row: Its fields.
        tokenizer: A transformers tokenizer.
        where: File and line, for messages.

    Raises:
        DataError: The row has no known form, or a field has the wrong type.
    """
    if "messages" in row or "conversations" in row:
        return encode_chat(_messages(row, where), tokenizer, where)
    for asked, answered in _QUESTION_ANSWER:
        if asked in row and answered in row:
            question = _text(row, asked, where)
            if row.get("input"):
                question = f"{question}\n\n{_text(row, 'input', where)}"
            answer = _text(row, answered, where)
            if tokenizer.chat_template is None:
                return _encode_completion(f"{question}\n\n", answer, tokenizer)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            return encode_chat(messages, tokenizer, where)
    for asked, answered in _PROMPT_COMPLETION:
        if asked in row and answered in row:
            prompt, completion = row[asked], row[answered]
            if isinstance(prompt, list) and isinstance(completion, list):
                return encode_chat(_messages({"messages": [*prompt, *completion]}, where), tokenizer, where)
            return _encode_completion(_text(row, asked, where), _text(row, answered, where), tokenizer)
    if "text" in row:
        ids = list(tokenizer(_text(row, "text", where))["input_ids"])
        ids += _end(tokenizer, ids)
        return Example(ids, [True] * len(ids))
    fields = ", ".join(map(str, row)) or "none"
    raise DataError(f"{where}: no field to train on (its fields: {fields})", hint=f"a row has {FORMS}")


def encode_chat(messages: list[dict[str, str]], tokenizer: Any, where: str) -> Example:
    """Tokenise a conversation, with the loss on the assistant's tokens and on the token that ends each of its messages.

    A template that marks the assistant's part ({% generation %}) is asked for that part. Other templates are rendered
    with one message more each time: what an assistant's message adds to its generation prompt is its part, and each
    prefix is checked against the whole. Where a template rewrites earlier turns (it may drop their reasoning), the loss
    leaves those turns out. The parts are tokenised one by one, as at inference, where the prompt is tokenised by
    itself.

    Args:
        messages: Each with role and content.
        tokenizer: A transformers tokenizer.
        where: File and line, for messages.

    Raises:
        DataError: The tokenizer has no chat template, or the template refuses the messages or does not show which part
            is the assistant's.
    """
    template = tokenizer.chat_template
    if template is None:
        raise DataError(
            f"{where}: the row is a chat, but the model's tokenizer has no chat template",
            hint="use an instruct model, or rows with prompt and completion, or text",
        )
    try:
        if "{% generation" in str(template) or "{%- generation" in str(template):
            result = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            return Example(list(result["input_ids"]), [bool(m) for m in result["assistant_masks"]])
        whole = _render(messages, tokenizer)
        spans = _assistant_spans(messages, whole, tokenizer)
    except DataError:
        raise
    except Exception as error:  # a template is a program: jinja errors, TypeErrors, raise_exception()
        raise DataError(f"{where}: the model's chat template refuses the messages: {error}") from error
    if not spans and any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{where}: the assistant's part cannot be found in the model's chat template")
    ids: list[int] = []
    learned: list[bool] = []
    position = 0
    for start, end in [*spans, (len(whole), len(whole))]:
        for text, learns in ((whole[position:start], False), (whole[start:end], True)):
            if text:
                piece = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += piece
                learned += [learns] * len(piece)
        position = end
    return Example(ids, learned)


def _assistant_spans(messages: list[dict[str, str]], whole: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Character spans of the assistant's messages in the rendered conversation."""
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        until = _render(messages[: i + 1], tokenizer)
        # A conversation that the assistant opens has no prompt to render; it is cut at the message's content.
        opening = until[: max(until.find(message["content"]), 0)]
        prompt = _render(messages[:i], tokenizer, generation=True) if i else opening
        if until.startswith(prompt) and whole.startswith(until):
            # The line break after the end-of-turn token is the template's, not the model's.
            end = len(until.rstrip())
            if end > len(prompt):
                spans.append((len(prompt), end))
    return spans


def _render(messages: list[dict[str, str]], tokenizer: Any, *, generation: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))


def _encode_completion(prompt: str, completion: str, tokenizer: Any) -> Example:
    before = list(tokenizer(prompt)["input_ids"])
    if before and before[-1] == tokenizer.eos_token_id:
        before.pop()  # some tokenizers end every text
    after = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    after += _end(tokenizer, after)
    return Example(before + after, [False] * len(before) + [True] * len(after))


def _end(tokenizer: Any, ids: list[int]) -> list[int]:
    end = tokenizer.eos_token_id
    return [] if end is None or (ids and ids[-1] == end) else [end]


def _messages(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    name = "messages" if "messages" in row else "conversations"
    value = row[name]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {name} is not a list of messages", hint='{"messages": [{"role": …, "content": …}]}')
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise DataError(f"{where}: message {number} is not a mapping with role and content")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            missing = "role" if not isinstance(role, str) else "content"
            raise DataError(f"{where}: message {number} has no {missing}, or it is not text")
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} is not text but {type(value).__name__}")
    return value
