"""`lorawatch chat`: hear what a run changed."""

from __future__ import annotations

import sys

import click
import msgspec

from lorawatch.cli.child import freest_gpu, run_module
from lorawatch.errors import UsageError
from lorawatch.run.adapters import recipe_of, refuse_random, require_adapter
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import AdapterChoice, ChatRequest


@click.command()
@click.argument("run", default="last")
@click.argument("prompt", required=False)
@click.option("--base", is_flag=True, help="The model as it was, without the adapter.")
@click.option("--both", is_flag=True, help="First the base's answer, then the adapter's.")
@click.option(
    "--adapter",
    type=click.Choice(["last", "best"]),
    default="last",
    help="The adapter at the run's end (default), or the one with the lowest evaluation loss.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, help="Longest answer (default: 256).")
@click.option(
    "--temperature", type=click.FloatRange(0, 10), default=0.0, help="0, the default, takes the likeliest token."
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, help="Of the sampling (default: 0).")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--cpu", is_flag=True, help="On the CPU, also where a GPU has room.")
@click.option("--force", is_flag=True, help="Ask a model of random weights, too.")
def chat(
    run: str, prompt: str | None, base: bool, both: bool, adapter: AdapterChoice, max_tokens: int, temperature: float, seed: int,
    raw: bool, cpu: bool, force: bool,
) -> int:  # fmt: skip
    """Ask the model that RUN (an id, its beginning, a name, or `last`) tuned; its answer comes as it is made.

    \b
    lorawatch chat last "What is LoRA?"
    lorawatch chat last "What is LoRA?" --both
    lorawatch chat last < question.txt
    lorawatch chat last                          a conversation

    In a conversation /base, /adapter and /both choose who answers, and ctrl-D leaves.
    """
    if base and both:
        raise UsageError("--base and --both contradict each other", hint="leave one out")
    interactive = prompt is None and sys.stdin.isatty()
    if interactive and not sys.stdout.isatty():
        raise UsageError(
            "there is no prompt, and the output is no terminal for a conversation",
            hint='lorawatch chat RUN "a question"',
        )
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", hint='lorawatch chat RUN "a question"')
    tuned_run = RunDir.find(run)
    recipe = recipe_of(tuned_run)
    if not base:
        require_adapter(tuned_run, adapter)
    refuse_random(tuned_run, recipe, "its answers", force=force)
    request = ChatRequest(
        target="base" if base else "both" if both else "adapter", adapter=adapter, interactive=interactive,
        max_tokens=max_tokens, temperature=temperature, seed=seed, raw=raw, cpu=cpu,
    )  # fmt: skip
    code, _ = run_module(
        "lorawatch.training.chat",
        [str(tuned_run.root), msgspec.json.encode(request).decode()],
        given=None if prompt is None else prompt.encode("utf-8", "replace"),
        gpu=None if cpu else freest_gpu(),
    )
    return code
