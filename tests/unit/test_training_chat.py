"""A conversation with a tiny model in this process: who answers, what is remembered, where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lorawatch.errors import UsageError
from lorawatch.recipe import loading
from lorawatch.run.requests import ChatRequest
from lorawatch.training import model as models
from lorawatch.training.chat import Chat, converse
from lorawatch.training.finetuned_model import FinetunedModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned() -> FinetunedModel:
    """A model whose adapter changes every answer."""
    recipe = loading.load("tiny", ["lora.targets=all-linear"])
    plan = models.plan_model(recipe)
    model = models.load_model(plan, recipe, CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return FinetunedModel(plan, model.eval(), models.load_tokenizer(plan), CPU)


class Talk:
    """A chat whose words are kept."""

    def __init__(self, tuned: FinetunedModel, **request: Any) -> None:
        self.written: list[str] = []
        self.notes: list[str] = []
        request = {"max_tokens": 12, **request}
        self.chat = Chat(tuned, ChatRequest(**request), self.written.append, self.notes.append)

    def ask(self, prompt: str) -> str:
        self.written.clear()
        self.chat.ask(prompt)
        return "".join(self.written)


def test_base_and_adapter_answer_differently_and_always_the_same(tuned: FinetunedModel) -> None:
    base, adapter = (Talk(tuned, target=voice).ask("Who?") for voice in ("base", "adapter"))
    assert base != adapter
    assert Talk(tuned, target="base").ask("Who?") == base
    assert Talk(tuned, target="both").ask("Who?") == f"base:\n{base}\nadapter:\n{adapter}"


def test_a_conversation_is_remembered_until_it_is_forgotten(tuned: FinetunedModel) -> None:
    talk = Talk(tuned)
    first, second = talk.ask("Who?"), talk.ask("Who?")
    assert second != first
    talk.chat.reset()
    assert talk.ask("Who?") == first
    raw = Talk(tuned, raw=True)
    assert raw.ask("Who?") == raw.ask("Who?")  # nothing is remembered of what is only continued


def test_sampling_is_repeatable_by_its_seed(tuned: FinetunedModel) -> None:
    one, again, other = (Talk(tuned, temperature=1.5, seed=seed).ask("Who?") for seed in (1, 1, 2))
    assert one == again != other


def test_an_answer_that_is_cut_says_so(tuned: FinetunedModel) -> None:
    talk = Talk(tuned, max_tokens=3)
    talk.ask("Who?")
    assert talk.notes == ["cut after 3 tokens: --max-tokens raises that"]


def test_the_context_is_the_limit_of_prompt_and_answer(tuned: FinetunedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(tuned, raw=True, max_tokens=50)
    monkeypatch.setattr(tuned.plan.config, "max_position_embeddings", 20)
    talk.ask("x" * 16)
    assert talk.notes == ["cut after 4 tokens: the model's context is full"]
    with pytest.raises(UsageError, match="the conversation has 20 tokens, and the model has a context of 20"):
        talk.ask("x" * 20)
    assert talk.written == []


def test_half_letters_of_a_terminal_are_taken(tuned: FinetunedModel) -> None:
    assert Talk(tuned).ask("caf\udcc3").endswith("\n")


def test_a_template_that_refuses_is_named(tuned: FinetunedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned.tokenizer, "chat_template", "{{ raise_exception('only \x1b[1mpoems') }}")
    with pytest.raises(UsageError, match="refuses the conversation: only poems"):
        Talk(tuned).ask("Who?")
    monkeypatch.setattr(tuned.tokenizer, "chat_template", None)
    talk = Talk(tuned)
    assert talk.notes == ["the model's tokenizer has no chat template: the prompt is continued as it is"]
    assert talk.ask("Who?")


def lines(*typed: str | type[BaseException]) -> Any:
    """A terminal on which these lines are typed; keeps the prompts it was given."""
    left: Iterator[str | type[BaseException]] = iter(typed)

    def read(prompt: str) -> str:
        read.prompts.append(prompt)  # type: ignore[attr-defined]
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    read.prompts = []  # type: ignore[attr-defined]
    return read


def test_commands_switch_who_answers_and_ctrl_d_leaves(tuned: FinetunedModel) -> None:
    talk = Talk(tuned)
    read = lines("/base", "", "Who?", "/both", "/nonsense", "/new", "/adapter", EOFError)
    assert converse(talk.chat, read, talk.written.append, talk.notes.append) == 0
    assert read.prompts == ["adapter> ", "base> ", "base> ", "base> ", "both> ", "both> ", "both> ", "adapter> "]
    assert "".join(talk.written) == Talk(tuned, target="base").ask("Who?") + "\n"
    assert [t for t in talk.notes if t.startswith(("no such", "a new"))] == [
        t for t in talk.notes if t[:2] in ("no", "a ")
    ]
    assert sum(t.startswith("no such command") for t in talk.notes) == 1
    assert converse(talk.chat, lines(KeyboardInterrupt), talk.written.append, talk.notes.append) == 130


def test_without_an_adapter_the_base_answers(tuned: FinetunedModel) -> None:
    recipe = loading.load("tiny")
    plan = models.plan_model(recipe)
    bare = FinetunedModel(plan, models.load_base(plan, recipe, CPU).eval(), tuned.tokenizer, CPU)
    talk = Talk(bare, target="base")
    converse(talk.chat, lines("/adapter", "Who?", EOFError), talk.written.append, talk.notes.append)
    assert talk.chat.target == "base"
    assert any("the base answers" in t for t in talk.notes)


def test_an_interrupted_answer_stays_in_the_conversation(
    tuned: FinetunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(tuned)
    whole = talk.ask("Who?")
    talk = Talk(tuned)
    count = 0

    def write(piece: str) -> None:
        nonlocal count
        talk.written.append(piece)
        count += bool(piece)
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(talk.chat, "_write", write)
    read = lines("Who?", EOFError)
    assert converse(talk.chat, read, talk.written.append, talk.notes.append) == 0
    assert "interrupted" in talk.notes
    assert whole.startswith(talk.written[0])
    assert [m["role"] for m in talk.chat._messages] == ["user", "assistant"]
