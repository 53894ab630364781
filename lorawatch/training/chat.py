"""`python -m lorawatch.training.chat RUN_DIR REQUEST`: asks a run's model, and streams the answer to standard output.

REQUEST is a `ChatRequest` as JSON. The prompt is read from standard input; in a conversation each turn is a line.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.run.adapters import adapter_words, recipe_of
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import ChatRequest, ChatTarget
from lorawatch.system import terminal
from lorawatch.text.sanitize import clean
from lorawatch.training.streaming import SafeStream, TokenText

if TYPE_CHECKING:
    from lorawatch.training.finetuned_model import FinetunedModel

HELP = (
    "ctrl-D leaves, ctrl-C ends an answer; /base, /adapter and /both choose who answers, /new starts a new conversation"
)


class Chat:
    """A conversation with a run's model.

    Args:
        finetuned_model: The model.
        request: How it is asked.
        write: Gets the answer's text, piece by piece.
        notify: Gets remarks to the user.
    """

    def __init__(
        self,
        finetuned_model: FinetunedModel,
        request: ChatRequest,
        write: Callable[[str], None],
        notify: Callable[[str], None],
    ) -> None:
        self._model, self._request, self._write, self._notify = finetuned_model, request, write, notify
        self.target: ChatTarget = request.target
        self._messages: list[dict[str, str]] = []
        self._raw = request.raw or finetuned_model.tokenizer.chat_template is None
        if self._raw and not request.raw:
            notify("the model's tokenizer has no chat template: the prompt is continued as it is")

    @property
    def has_adapter(self) -> bool:
        """Whether the adapter can be asked, and not only the base."""
        return hasattr(self._model.model, "disable_adapter")

    def reset(self) -> None:
        """Start a new conversation."""
        self._messages.clear()

    def ask(self, prompt: str) -> None:
        """Answer a prompt. Where both answer, the conversation continues from the adapter's answer.

        Raises:
            UsageError: The prompt is empty, the template refuses it, or the conversation does not fit the model's
                context.
            KeyboardInterrupt: The answer was interrupted; the text until then stays in the conversation.
        """
        # A terminal may send part of a character, which a tokenizer does not accept.
        question = {"role": "user", "content": prompt.encode("utf-8", "replace").decode()}
        before = [] if self._raw else list(self._messages)
        ids = self._encode([*before, question])
        limit = self._max_new_tokens(ids.shape[1])
        for target in ("base", "adapter") if self.target == "both" else (self.target,):
            if self.target == "both":
                self._write(f"{target}:\n")
            answer: list[str] = []
            cut = ""
            try:
                cut = self._answer(ids, limit, target == "adapter", answer)
            finally:
                self._write("\n\n" if self.target == "both" and target == "base" else "\n")
                if answer:
                    self._messages = [*before, question, {"role": "assistant", "content": "".join(answer)}]
            if cut:
                self._notify(cut)

    def _answer(self, ids: Any, limit: int, adapter: bool, answer: list[str]) -> str:
        """Generate an answer and write its text as it comes.

        Args:
            ids: Tokens of the conversation, shape (1, tokens), INT64, on the model's device.
            limit: Tokens that the answer may have.
            adapter: Answer with the adapter, not with the base alone.
            answer: Gets the pieces of the text, before they are made safe for a terminal.

        Returns:
            Why the answer was cut; empty where the model ended it.
        """
        import torch

        tokenizer, model, request = self._model.tokenizer, self._model.model, self._request
        text = TokenText(lambda t: tokenizer.decode(t, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        safe = SafeStream()
        write = self._write

        def show(piece: str) -> None:
            if piece:
                answer.append(piece)
                write(safe.feed(piece))

        streamer = _streamer(lambda token: show(text.add(token)))
        config = model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        stops = sorted({t for t in (*ends, tokenizer.eos_token_id) if isinstance(t, int)})
        torch.manual_seed(request.seed)
        base_only = model.disable_adapter() if self.has_adapter and not adapter else contextlib.nullcontext()
        try:
            with torch.inference_mode(), base_only:
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit,
                    eos_token_id=stops or None, pad_token_id=tokenizer.pad_token_id, streamer=streamer,
                    **_sampling(request.temperature),
                )  # fmt: skip
        finally:
            show(text.end())
            write(safe.end())
        if streamer.tokens < limit or int(out[0, -1]) in stops:
            return ""
        reason = "--max-tokens raises that" if limit == request.max_tokens else "the model's context is full"
        return f"cut after {limit} tokens: {reason}"

    def _encode(self, messages: list[dict[str, str]]) -> Any:
        """Token ids of a conversation, or in raw mode of its last message.

        Returns:
            Shape (1, tokens), INT64, on the model's device.

        Raises:
            UsageError: The chat template refuses the conversation.
        """
        tokenizer, device = self._model.tokenizer, self._model.device
        if self._raw:
            encoded = tokenizer(messages[-1]["content"], return_tensors="pt")
        else:
            try:
                encoded = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )
            except Exception as error:  # a template is a program and raises errors of any kind
                raise UsageError(
                    f"the model's chat template refuses the conversation: {clean(str(error))[:300]}",
                    hint="use --raw to leave the template out",
                ) from error
        return encoded["input_ids"].to(device)

    def _max_new_tokens(self, prompt_tokens: int) -> int:
        """Tokens that an answer may have.

        Raises:
            UsageError: The prompt has no token, or the conversation fills the model's context.
        """
        from lorawatch.training.facts import context_length

        limit = context_length(self._model.plan.config)
        if prompt_tokens < 1:
            raise UsageError("the prompt has no token", hint="type some text")
        if limit is None:
            return self._request.max_tokens
        if prompt_tokens >= limit:
            raise UsageError(
                f"the conversation has {prompt_tokens} tokens, and the model has a context of {limit}",
                hint="ask something shorter, or start a new conversation: /new",
            )
        return min(self._request.max_tokens, limit - prompt_tokens)


def _streamer(add: Callable[[int], None]) -> Any:
    """A transformers streamer that hands on an answer's tokens one by one, and counts them in `tokens`."""
    from transformers.generation.streamers import BaseStreamer

    class Streamer(BaseStreamer):  # type: ignore[misc]  # transformers is not type-checked here
        tokens = 0
        _is_prompt = True

        def put(self, value: Any) -> None:
            """Take the prompt, which comes first, or tokens of the answer: INT64 of any shape."""
            if self._is_prompt:
                self._is_prompt = False
                return
            for token in value.reshape(-1).tolist():
                self.tokens += 1
                add(token)

        def end(self) -> None:
            """Do nothing: the caller ends the text, also after an answer that was interrupted."""

    return Streamer()


def _sampling(temperature: float) -> dict[str, Any]:
    """Options of `generate` for a temperature; the model's own sampling parameters are switched off."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def converse(
    chat: Chat, read: Callable[[str], str], write: Callable[[str], None], notify: Callable[[str], None]
) -> int:
    """Take turns until the user leaves.

    Args:
        chat: The conversation.
        read: Returns a typed line for a prompt; raises EOFError or KeyboardInterrupt where the user leaves.
        write: Gets the line break after the prompt that was left.
        notify: Gets remarks to the user.

    Returns:
        The process's exit status.
    """
    notify(HELP)
    while True:
        try:
            line = read(f"{chat.target}> ").strip()
        except (EOFError, KeyboardInterrupt) as left:
            write("\n")
            return 0 if isinstance(left, EOFError) else 130
        if not line:
            continue
        if line.startswith("/"):
            _command(chat, line, notify)
            continue
        try:
            chat.ask(line)
        except KeyboardInterrupt:
            notify("interrupted")
        except UsageError as error:
            notify(str(error))


def _command(chat: Chat, line: str, notify: Callable[[str], None]) -> None:
    """Carry out a line that begins with a slash."""
    targets: dict[str, ChatTarget] = {"/base": "base", "/adapter": "adapter", "/both": "both"}
    if line == "/new":
        chat.reset()
        notify("a new conversation")
    elif line in targets:
        if targets[line] != "base" and not chat.has_adapter:
            notify("this run has no adapter, or it was started with --base: the base answers")
            return
        chat.target = targets[line]
    else:
        notify(HELP if line in ("/help", "/?") else f"no such command; {HELP}")


def _run(run: RunDir, request: ChatRequest) -> int:
    """Load the model, and ask it once or hold a conversation.

    Returns:
        The process's exit status.
    """
    prompt = ""
    if not request.interactive:
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not prompt:
            raise UsageError("the prompt is empty", hint='lorawatch chat RUN "a question"')
    recipe = recipe_of(run)
    name = clean(recipe.model.name)
    _notify(f"loading {name}" + ("" if request.target == "base" else f" with {adapter_words(run, request.adapter)}"))
    from lorawatch.training import finetuned_model  # torch's import starts here

    loaded = finetuned_model.load(
        run, recipe, adapter=request.target != "base", choice=request.adapter, cpu=request.cpu
    )
    device = "GPU" if loaded.device.type == "cuda" else "CPU"
    _notify(f"on the {device}, {loaded.precision}" + (f" ({loaded.note})" if loaded.note else ""))
    chat = Chat(loaded, request, _write, _notify)
    if not request.interactive:
        chat.ask(prompt)
        return 0
    import readline  # noqa: F401  its import gives `input` line editing

    return converse(chat, input, _write, _notify)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _notify(text: str) -> None:
    sys.stderr.write(f"lorawatch: {text}\n")
    sys.stderr.flush()


def _terminated(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # as an exception, so that the terminal gets its modes back


def main() -> int:
    """Answer. Returns the process's exit status."""
    terminal.guard()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(RunDir(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=ChatRequest))
    except LorawatchError as error:
        _notify(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal and the parent may both have sent one
        return 130
    except BrokenPipeError:  # `lorawatch chat … | head`
        return 0


if __name__ == "__main__":
    sys.exit(terminal.finish(main()))
