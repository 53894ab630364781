"""Which runs can be asked or merged, and what is said of those that cannot."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lorawatch.cli.chat import chat
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.recipe import loading
from lorawatch.run.adapters import adapter_words, recipe_of, refuse_random, require_adapter
from lorawatch.run.directory import RunDir, RunInfo, RunState


def a_run(**more: Any) -> RunDir:
    values: dict[str, Any] = {
        "run_id": "", "name": "tiny", "created_at": time.time(), "host": "h", "user": "u", "world_size": 1,
        "recipe": loading.load("tiny").to_dict(),
    }  # fmt: skip
    return RunDir.create(RunInfo(**{**values, **more}))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (RunState(), "has no adapter yet: it is waiting to start"),
        (RunState(state="running", step=5, steps_total=60), "has no adapter yet: it is at step 5 of 60"),
        (
            RunState(state="failed", step=7, message="CUDA out of \x1b[31mmemory"),
            "has no adapter: it ended (failed) at step 7: CUDA out of memory",
        ),
    ],
)
def test_a_run_without_an_adapter_says_where_it_stands(state: RunState, words: str) -> None:
    run = a_run()
    run.write_state(state)
    with pytest.raises(LorawatchError) as caught:
        require_adapter(run)
    assert caught.value.message == f"run {run.run_id} {words}"
    assert caught.value.hint
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").touch()
    require_adapter(run)


def save(run: RunDir, folder: Path, step: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").touch()
    if step is not None:
        best = {"step": step, "loss": 1.25, "label_tokens": 9, "attempt": 0, "at": 0.0, "data": ""}
        (folder / "evaluation.json").write_text(json.dumps(best))


def test_the_best_adapter_is_offered_where_it_is_not_the_one_that_is_used() -> None:
    run = a_run()
    run.write_state(RunState(state="running", step=50, steps_total=60))
    with pytest.raises(LorawatchError, match="has no best adapter: it made no evaluation whose loss was a number"):
        require_adapter(run, "best")
    save(run, run.best, 40)
    require_adapter(run, "best")
    with pytest.raises(LorawatchError, match="has no adapter yet: it is at step 50 of 60") as caught:
        require_adapter(run)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("or use the best so far: --adapter best (step 40)")
    save(run, run.adapter)
    who = f"adapter of run {run.run_id}"
    assert adapter_words(run, "last") == f"the last {who}; the best is of step 40, evaluation loss 1.25: --adapter best"
    run.write_state(RunState(state="completed", step=60))
    assert adapter_words(run, "last").startswith(f"the last {who} (step 60); the best is of step 40")
    assert adapter_words(run, "best") == f"the best {who} (step 40, evaluation loss 1.25); the last is of step 60"
    save(run, run.best, 60)
    words = f"the {who}, its last and its best (step 60, evaluation loss 1.25)"
    assert adapter_words(run, "last") == adapter_words(run, "best") == words
    shutil.rmtree(run.best)
    assert adapter_words(run, "last") == f"the {who}"


def test_a_command_of_ones_own_has_no_model_that_is_known() -> None:
    with pytest.raises(UsageError, match="is a command of your own"):
        recipe_of(a_run(own_command=True, recipe=None, command=["train.sh"]))
    assert recipe_of(a_run()) == loading.load("tiny")


def test_random_weights_are_refused_unless_somebody_insists() -> None:
    run = a_run()
    with pytest.raises(UsageError, match="its answers would be noise"):
        refuse_random(run, recipe_of(run), "its answers", force=False)
    refuse_random(run, recipe_of(run), "its answers", force=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["last", "x", "--base", "--both"], "--base and --both contradict each other"),
        (["last", " "], "the prompt is empty"),
        (["last", "x"], "has no adapter yet"),
        (["last", "x", "--base"], "trained on random weights"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    a_run()
    result = CliRunner().invoke(chat, arguments)
    assert isinstance(result.exception, LorawatchError)
    assert message in result.exception.message
