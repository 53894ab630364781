"""The command line's root: which command, loaded only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from lorawatch.system import terminal
from lorawatch.system.version import __version__
from lorawatch.text.sanitize import clean, encodable

# name → (module, one line of help). The module's command object has the name, dashes as underscores.
COMMANDS: dict[str, tuple[str, str]] = {
    "runs": ("runs", "List the runs in the history."),
    "show": ("runs", "Show one run: what was asked, measured, and what happened."),
    "attach": ("control", "Follow a live run until it ends; leaving does not stop it."),
    "replay": ("control", "Watch a recorded run again, at any speed."),
    "stop": ("control", "Stop a run at its next step and save; twice ends it at once."),
    "adopt": ("control", "Resume recording a run whose recorder died."),
    "chat": ("chat", "Ask the model that a run tuned, and the model as it was."),
    "merge": ("merge", "Write a run's model as merged weights, for vLLM or llama.cpp."),
    "compare": ("compare", "Which GPUs, how many, how long, at what price: own runs beside published tables."),
    "estimate": ("estimate", "Whether a recipe fits which GPU, and how long an epoch takes, before it starts."),
    "sql": ("sql", "Ask the history with one read-only SELECT."),
    "snapshot": ("sql", "Copy the history into a file of your own."),
    "import": ("importing", "Take a published table into the history and check its arithmetic."),
    "doctor": ("doctor", "Say what works on this machine, and what to do about what does not."),
    "supervise": ("supervise", "Record prepared runs; what --detach starts."),
    "record": ("record", "Run a recipe, or your own command, headless and record it."),
}
# `lorawatch --record` is how it is written; the name `record` stays out of the list.
HIDDEN = frozenset({"record", "supervise"})


# May name a file, whose name may be any bytes; a terminal may give a prompt with half a letter.
_ANY_BYTES = frozenset({"recipe", "prompt"})


class _Utf8Text(click.types.StringParamType):
    """Text that the history and a recipe can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if isinstance(text, str) and encodable(text) != text:
            self.fail(f"{encodable(text)[:200]!r} is no UTF-8 text.", param, ctx)
        return text


class _Root(click.Group):
    """A group whose commands are imported when they are called: `--help` must cost no more than click itself."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lorawatch.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        for parameter in command.params:
            if parameter.type is click.STRING and parameter.name not in _ANY_BYTES:
                parameter.type = _Utf8Text()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], [*self.list_commands(ctx), "--record"], n=1)
            if close:
                raise click.UsageError(f"no such command {args[0]!r}; did you mean {close[0]!r}?", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [("--record [RECIPE]", COMMANDS["record"][1])]
        rows += [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.command(cls=_Root, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="lorawatch %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, /, **_options: Any) -> None:
    """Launch, watch, record and compare multi-GPU LoRA fine-tuning runs.

    \b
    lorawatch                       the screens: watch, look back, launch
    lorawatch --record              tune the demo model on this machine and record it
    lorawatch --record RECIPE       a recipe file, or a built-in: demo, exxact-8b, tiny
    lorawatch --record -- CMD …     supervise and record your own training command
    lorawatch --record --resume RUN train on from a run's last checkpoint
    lorawatch --record --help       all of its options
    """
    if ctx.invoked_subcommand is None:
        from lorawatch.cli.control import open_tui

        ctx.exit(open_tui())


def normalize(args: Sequence[str]) -> tuple[list[str], list[str] | None, bool]:
    """`--record` anywhere before `--` becomes the command `record`; `--debug` is taken out wherever it stands.

    Returns:
        The arguments as click takes them; the user's own command behind `--record … --`, or None; whether `--debug`
        was there.
    """
    end = args.index("--") if "--" in args else len(args)
    head, rest = list(args[:end]), list(args[end:])
    debug = "--debug" in head
    head = [a for a in head if a != "--debug"]
    if "--record" not in head:
        return head + rest, None, debug
    head.remove("--record")
    return ["record", *head], rest[1:] if rest else None, debug


def _called(args: list[str], own_command: list[str] | None) -> Any:
    """Run a command; once more where it met a damaged history that has been made again."""
    try:
        return cli.main(args=list(args), prog_name="lorawatch", standalone_mode=False, obj=own_command)
    except Exception as error:
        from lorawatch.cli.rebuilding import made_again

        if not made_again(error, next((a for a in args if a in COMMANDS), None)):
            raise
    return cli.main(args=list(args), prog_name="lorawatch", standalone_mode=False, obj=own_command)


def run(args: Sequence[str]) -> int:
    """Run one command line. Returns its exit status: 2 for bad usage, 3 for a missing GPU or dependency."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it hides how a child ended
    args, own_command, debug = normalize(args)
    if debug:
        os.environ["LORAWATCH_DEBUG"] = "1"  # for the screens, and for what they start
    debug = bool(os.environ.get("LORAWATCH_DEBUG"))
    try:
        result = _called(args, own_command)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        from lorawatch.text.masking import mask_forms

        vars(error)["message"] = mask_forms(error.message)  # a command without its `--`
        with contextlib.suppress(OSError):  # a standard error that takes nothing
            error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit:  # click's end for a broken pipe
        if terminal.has_no_reader():  # `lorawatch runs | head`
            return 0
        raise
    except Exception as error:
        if terminal.refused(error):  # a full disk behind `>`
            return 1
        if debug:
            raise
        return _report(error)


def _report(error: Exception) -> int:
    """Say on standard error, where that works, what ended the command. Returns the exit status."""
    from lorawatch.errors import LorawatchError, UsageError

    if isinstance(error, UnicodeEncodeError) and clean(error.object) != error.object:
        shown = clean(error.object[max(error.start - 40, 0) : error.end + 40])
        error = UsageError(f"{shown!r} is no UTF-8 text", hint="an argument or a name has bytes that are no letter")
    if isinstance(error, OSError) and error.filename is not None:  # what the machine refuses is no defect
        name = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        error = LorawatchError(
            f"{name}: {error.strerror or error}",
            hint="see that it is there and that you may use it",
        )
    text = str(error)
    if not isinstance(error, LorawatchError):
        text = f"{type(error).__name__}: {error}\n  this is a defect in lorawatch; --debug shows where"
    with contextlib.suppress(OSError):
        sys.stderr.write(f"lorawatch: {text}\n")
        sys.stderr.flush()
    return error.exit_code if isinstance(error, LorawatchError) else 1
