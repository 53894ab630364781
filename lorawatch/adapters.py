"""Which run has an adapter to be used, and what is asked of the processes that use it. Loads no torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from lorawatch import recipe as recipes
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.rundir import ENDED, RunDir
from lorawatch.sanitize import clean

Voice = Literal["base", "adapter", "both"]
"""Who answers: the model as it was, as the run made it, or one after the other."""


class ChatRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What `python -m lorawatch.training.chat` is told; the prompt comes by its standard input."""

    voice: Voice = "adapter"
    interactive: bool = False
    """A conversation on a terminal."""
    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    raw: bool = False
    """The prompt is continued as it is, without the chat template."""
    cpu: bool = False


class MergeRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What `python -m lorawatch.training.merge` is told."""

    folder: str
    """Absolute."""
    dtype: str | None = None
    """None: as the base weights."""
    force: bool = False


class MergeReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What `python -m lorawatch.training.merge` says at its end."""

    run_id: str
    folder: str
    model: str
    dtype: str
    parameters: int
    size_bytes: int
    """Of all files."""
    files: list[str]
    largest_difference: float
    """Between the logits of base + adapter and of the merged weights, read back, on a short prompt."""
    relative_difference: float
    """Its root mean square, over that of the logits."""
    allowed_difference: float
    """How large the relative difference may be by the rounding of the number formats."""
    adapter_difference: float
    """The same between base and base + adapter: what the merge had to bring about."""
    unpacked_from: str | None = None
    """The GGUF file whose quantised weights were unpacked."""


def recipe_of(run: RunDir) -> recipes.Recipe:
    """The recipe of a run.

    Raises:
        UsageError: It is of an own command, whose model lorawatch does not know.
        LorawatchError: Its files cannot be read.
    """
    try:
        info = run.info()
    except (OSError, msgspec.MsgspecError) as error:
        raise LorawatchError(f"run {run.run_id}: run.json cannot be read: {error}") from None
    if info.own_command or info.recipe is None:
        raise UsageError(
            f"run {run.run_id} is a command of your own: lorawatch knows neither its model nor its adapter",
            hint="load the adapter where the command saved it, with PEFT or vLLM",
        )
    return recipes.from_dict(info.recipe, f"run {run.run_id}")


def require_adapter(run: RunDir) -> None:
    """See that a run has saved an adapter.

    Raises:
        LorawatchError: It has not; says where the run stands and what to do.
    """
    if (run.adapter / "adapter_config.json").is_file():
        return
    state = run.state()
    step = f"step {state.step}" + (f" of {state.steps_total}" if state.steps_total else "")
    if state.state not in ENDED:
        stands = "is waiting to start" if state.state in ("queued", "starting") else f"is at {step}"
        raise LorawatchError(
            f"run {run.run_id} has no adapter yet: it {stands}",
            hint=f"one is saved when it ends; lorawatch stop {run.run_id} stops it at its next step and saves",
        )
    why = f": {clean(state.message)}" if state.message else ""
    raise LorawatchError(
        f"run {run.run_id} has no adapter: it ended ({state.state}) at {step}{why}",
        hint="lorawatch runs lists the runs; one that completed has an adapter",
    )


def refuse_random(run: RunDir, recipe: recipes.Recipe, what: str, *, force: bool) -> None:
    """Refuse what has no use with random base weights.

    Args:
        what: What would come out: `its answers`.

    Raises:
        UsageError: The run's base weights are random, and nobody insists.
    """
    if recipe.model.weights == "random" and not force:
        raise UsageError(
            f"run {run.run_id} trained on random weights (model.weights: random), which measures speed and learns no "
            f"language: {what} would be noise",
            hint="--force goes on all the same; a run with model.weights: pretrained has something to say",
        )
