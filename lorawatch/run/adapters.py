"""Which run has which adapters to be used, and what is asked of the processes that use them. Loads no torch."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.recipe import loading, schema
from lorawatch.run.directory import ENDED, RunDir
from lorawatch.run.requests import AdapterChoice
from lorawatch.system.files import read_json
from lorawatch.text.sanitize import clean

BEST_FILE = "evaluation.json"


class BestAdapter(msgspec.Struct, kw_only=True, frozen=True):
    """`best/evaluation.json`: which adapter `best/` holds."""

    step: int
    """After which step it was evaluated."""
    loss: float
    """Mean over the label tokens of the rows to evaluate on."""
    label_tokens: int
    attempt: int
    at: float
    data: str
    """Fingerprint of the rows to evaluate on: another's loss cannot be compared."""


def recipe_of(run: RunDir) -> schema.Recipe:
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
    return loading.from_dict(info.recipe, f"run {run.run_id}")


def best_of(run: RunDir) -> BestAdapter | None:
    """What `best/` holds; None where there is none."""
    return read_json(run.best / BEST_FILE, BestAdapter)


def adapter_folder(run: RunDir, which: AdapterChoice) -> Path:
    """Where an adapter of a run is."""
    return run.adapter if which == "last" else run.best


def adapter_step(run: RunDir, which: AdapterChoice) -> int | None:
    """The step that an adapter is of; None where that is not known, as while a run that was resumed goes on."""
    if which == "best":
        return best.step if (best := best_of(run)) else None
    state = run.state()
    return state.step if state.state in ENDED else None


def adapter_words(run: RunDir, which: AdapterChoice) -> str:
    """Which adapter is used, and what there is beside it: `the last adapter of run 3kq9 (step 60); the best …`."""
    best = best_of(run)
    if best is None:
        return f"the adapter of run {run.run_id}"
    last = adapter_step(run, "last")
    lowest = f"step {best.step}, evaluation loss {best.loss:.4g}"
    if best.step == last:
        return f"the adapter of run {run.run_id}, its last and its best ({lowest})"
    if which == "best":
        return f"the best adapter of run {run.run_id} ({lowest})" + (f"; the last is of step {last}" if last else "")
    at = f" (step {last})" if last else ""
    return f"the last adapter of run {run.run_id}{at}; the best is of {lowest}: --adapter best"


def require_adapter(run: RunDir, which: AdapterChoice = "last") -> None:
    """See that a run has saved an adapter.

    Raises:
        LorawatchError: It has not; says where the run stands and what to do.
    """
    if (adapter_folder(run, which) / "adapter_config.json").is_file():
        return
    state = run.state()
    step = f"step {state.step}" + (f" of {state.steps_total}" if state.steps_total else "")
    if which == "best":
        there = "; its last adapter is there: --adapter last" if run.adapter.is_dir() else ""
        raise LorawatchError(
            f"run {run.run_id} has no best adapter: it made no evaluation whose loss was a number (it is at {step})",
            hint=f"data.eval_share and train.eval_every of a recipe make evaluations{there}",
        )
    best = f", or use the best so far: --adapter best (step {best_one.step})" if (best_one := best_of(run)) else ""
    if state.state not in ENDED:
        stands = "is waiting to start" if state.state in ("queued", "starting") else f"is at {step}"
        raise LorawatchError(
            f"run {run.run_id} has no adapter yet: it {stands}",
            hint=f"one is saved when it ends; lorawatch stop {run.run_id} stops it at its next step and saves{best}",
        )
    why = f": {clean(state.message)}" if state.message else ""
    raise LorawatchError(
        f"run {run.run_id} has no adapter: it ended ({state.state}) at {step}{why}",
        hint=f"lorawatch runs lists the runs; one that completed has an adapter{best}",
    )


def refuse_random(run: RunDir, recipe: schema.Recipe, what: str, *, force: bool) -> None:
    """Refuse what has no use with random base weights.

    Args:
        what: What would come out: `its answers`.

    Raises:
        UsageError: The run's base weights are random, and `force` is off.
    """
    if recipe.model.weights == "random" and not force:
        raise UsageError(
            f"run {run.run_id} trained on random weights (model.weights: random), which measures speed and learns no "
            f"language: {what} would be noise",
            hint="--force goes on all the same; a run with model.weights: pretrained has something to say",
        )
