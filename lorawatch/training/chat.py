"""`python -m lorawatch.training.chat RUN_DIR REQUEST`: ask a run's model; the answer is streamed to standard output.

REQUEST is a `ChatRequest` as JSON. The prompt is standard input; in a conversation it is typed, a line a turn.
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

HELP = "ctrl-D leaves, ctrl-C ends an answer; /base, /adapter and /both choose who answers, /new begins anew"


class Chat:
    """A conversation with a run's model.

    Args:
        tuned: The model.
        request: How it is asked.
        write: Where the answer's text goes, piece by piece.
        tell: Where remarks go.
    """

    def __init__(
        self,
        finetuned_model: FinetunedModel,
        request: ChatRequest,
        write: Callable[[str], None],
        notify: Callable[[str], None],
    ) -> None:
        self._tuned, self._request, self._write, self._notify = finetuned_model, request, write, notify
        self.target: ChatTarget = request.target
        self._messages: list[dict[str, str]] = []
        self._raw = request.raw or finetuned_model.tokenizer.chat_template is None
        if self._raw and not request.raw:
            notify("the model's tokenizer has no chat template: the prompt is continued as it is")

    @property
    def has_adapter(self) -> bool:
        """Whether the adapter can be asked, and not the base alone."""
        return hasattr(self._tuned.model, "disable_adapter")

    def reset(self) -> None:
        """Begin a new conversation."""
        self._messages.clear()

    def ask(self, prompt: str) -> None:
        """Answer a prompt as the conversation goes on; of two answers the adapter's is the one that it goes on from.

        Raises:
            UsageError: The conversation does not fit the model's context.
            KeyboardInterrupt: The answer was broken off; what there was of it counts as said.
        """
        # A terminal may give half a letter, which no tokenizer takes.
        said = {"role": "user", "content": prompt.encode("utf-8", "replace").decode()}
        before = [] if self._raw else list(self._messages)
        ids = self._encode([*before, said])
        room = self._max_new_tokens(ids.shape[1])
        for target in ("base", "adapter") if self.target == "both" else (self.target,):
            if self.target == "both":
                self._write(f"{target}:\n")
            answer: list[str] = []
            cut = ""
            try:
                cut = self._answer(ids, room, target == "adapter", answer)
            finally:
                self._write("\n\n" if self.target == "both" and target == "base" else "\n")
                if answer:
                    self._messages = [*before, said, {"role": "assistant", "content": "".join(answer)}]
            if cut:
                self._notify(cut)

    def _answer(self, ids: Any, room: int, adapter: bool, answer: list[str]) -> str:
        """Write an answer to these tokens; `answer` gets its text, as the model said it.

        Returns:
            Why it was cut; empty where the model ended it.
        """
        import torch
        from transformers.generation.streamers import BaseStreamer

        tokenizer, model, request = self._tuned.tokenizer, self._tuned.model, self._request
        text = TokenText(lambda t: tokenizer.decode(t, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        safe = SafeStream()
        write = self._write

        def say(piece: str) -> None:
            if piece:
                answer.append(piece)
                write(safe.feed(piece))

        class Streamer(BaseStreamer):  # type: ignore[misc]  # transformers is not type-checked here
            """Takes the prompt first, then a token at a time."""

            prompt = True
            tokens = 0

            def put(self, value: Any) -> None:
                if self.prompt:
                    self.prompt = False
                    return
                for token in value.reshape(-1).tolist():
                    self.tokens += 1
                    say(text.add(token))

            def end(self) -> None:
                """Nothing is left to do that an answer broken off would not need too."""

        streamer = Streamer()
        config = model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        stops = sorted({t for t in (*ends, tokenizer.eos_token_id) if isinstance(t, int)})
        hot = request.temperature > 0
        # The model's own preferences for sampling would make a greedy answer no greedy one.
        sampling = {"temperature": request.temperature, "top_p": 1.0, "top_k": 0} if hot else {}
        cold = {} if hot else {"temperature": None, "top_p": None, "top_k": None}
        torch.manual_seed(request.seed)
        without = model.disable_adapter() if self.has_adapter and not adapter else contextlib.nullcontext()
        try:
            with torch.inference_mode(), without:
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=hot,
                    eos_token_id=stops or None, pad_token_id=tokenizer.pad_token_id, streamer=streamer, **sampling, **cold,
                )  # fmt: skip
        finally:
            say(text.end())
            write(safe.end())
        if streamer.tokens < room or int(out[0, -1]) in stops:
            return ""
        limit = "--max-tokens raises that" if room == request.max_tokens else "the model's context is full"
        return f"cut after {room} tokens: {limit}"

    def _encode(self, messages: list[dict[str, str]]) -> Any:
        """Token ids, a row."""
        tokenizer, device = self._tuned.tokenizer, self._tuned.device
        if self._raw:
            found = tokenizer(messages[-1]["content"], return_tensors="pt")
        else:
            try:
                found = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )
            except Exception as error:  # a template is a program of its own
                raise UsageError(
                    f"the model's chat template refuses the conversation: {clean(str(error))[:300]}",
                    hint="--raw leaves the template out",
                ) from error
        return found["input_ids"].to(device)

    def _max_new_tokens(self, prompt_tokens: int) -> int:
        """Tokens that an answer may have."""
        from lorawatch.training.facts import context_length

        limit = context_length(self._tuned.plan.config)
        if prompt_tokens < 1:
            raise UsageError("the prompt has no token", hint="type some text")
        if limit is None:
            return self._request.max_tokens
        if prompt_tokens >= limit:
            raise UsageError(
                f"the conversation has {prompt_tokens} tokens, and the model has a context of {limit}",
                hint="ask something shorter, or begin anew: /new",
            )
        return min(self._request.max_tokens, limit - prompt_tokens)


def converse(
    chat: Chat, read: Callable[[str], str], write: Callable[[str], None], notify: Callable[[str], None]
) -> int:
    """Take turns until the user leaves. Returns the process's exit status.

    Args:
        read: Gives a typed line for a prompt; EOFError or KeyboardInterrupt where the user leaves.
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
            notify("broken off")
        except UsageError as error:
            notify(str(error))


def _command(chat: Chat, line: str, notify: Callable[[str], None]) -> None:
    voices: dict[str, ChatTarget] = {"/base": "base", "/adapter": "adapter", "/both": "both"}
    if line == "/new":
        chat.reset()
        notify("a new conversation")
    elif line in voices:
        if voices[line] != "base" and not chat.has_adapter:
            notify("this run has no adapter, or it was started with --base: the base answers")
            return
        chat.target = voices[line]
    else:
        notify(HELP if line in ("/help", "/?") else f"no such command; {HELP}")


def _run(run: RunDir, request: ChatRequest) -> int:
    prompt = ""
    if not request.interactive:
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not prompt:
            raise UsageError("the prompt is empty", hint='lorawatch chat RUN "a question"')
    recipe = recipe_of(run)
    notify = _notify
    name = clean(recipe.model.name)
    notify(f"loading {name}" + ("" if request.target == "base" else f" with {adapter_words(run, request.adapter)}"))
    from lorawatch.training import finetuned_model  # torch's import starts here

    loaded = finetuned_model.load(run, recipe, adapter=request.target != "base", which=request.adapter, cpu=request.cpu)
    notify(f"on the {'GPU' if loaded.device.type == 'cuda' else 'CPU'}, {loaded.precision}"
         + (f" ({loaded.note})" if loaded.note else ""))  # fmt: skip
    chat = Chat(loaded, request, _write, notify)
    if not request.interactive:
        chat.ask(prompt)
        return 0
    import readline  # noqa: F401  its import gives `input` line editing

    return converse(chat, input, _write, notify)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _notify(text: str) -> None:
    sys.stderr.write(f"lorawatch: {text}\n")
    sys.stderr.flush()


def _terminated(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # so that the terminal gets its modes back


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
