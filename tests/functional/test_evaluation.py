"""Evaluations of real runs, two ranks under torchrun: in journal, history and on the command line; the best kept."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    ONE_RANK,
    TINY,
    finish,
    journal_steps,
    kill_all,
    lorawatch,
    no_process_left,
    ranks_of,
    sql,
    start,
    the_run,
    wait_for,
    wait_for_step,
)
from trained import loss_by_hand, rows

from lorawatch.recipe import loading
from lorawatch.run.adapters import best_of
from lorawatch.run.directory import RunDir


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def journaled(run: RunDir, kind: str, rank: int = 0) -> list[dict[str, Any]]:
    """Complete lines of one kind of a rank's journal, as plain data."""
    text = run.rank_journal(rank).read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if line["t"] == kind]


def evaluated(run: RunDir, attempt: int | None = None) -> dict[int, float]:
    """Losses by step; of several attempts the latest's."""
    lines = journaled(run, "evaluation")
    return {e["step"]: e["loss"] for e in lines if attempt in (None, e["attempt"])}


OVERSHOOTS = ("train.learning_rate=0.02", "train.schedule=constant", "lora.targets=all-linear")
"""A training whose best evaluation is not its last."""


SLOW_DISK = """
import os, sys
if os.environ.get('RANK') == '0':
    import threading, time
    def plant():
        while not hasattr(sys.modules.get('lorawatch.training.trainer'), 'train'): time.sleep(.01)
        from lorawatch.training import evaluation
        save = evaluation.save_adapter
        evaluation.save_adapter = lambda *args: (time.sleep(3), save(*args))
    threading.Thread(target=plant, daemon=True).start()
"""


def test_two_ranks_evaluate_all_rows_once_and_keep_the_best(lorawatch_home: Path, tmp_path: Path) -> None:
    """Five ragged rows in batches of two: rank 0 has three of them, rank 1 two."""
    overrides = (f"data.source={rows(tmp_path / 'rows.jsonl', 30)}", "data.eval_share=0.17", "train.steps=12",
                 "train.eval_every=5", *OVERSHOOTS)  # fmt: skip
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SLOW_DISK)
    result = lorawatch(*TINY, *settings(*overrides), env={"PYTHONPATH": str(hook)})
    assert result.returncode == 0, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    losses = evaluated(run)
    assert list(losses) == [5, 10, 12], "and one at the end"
    assert journaled(run, "evaluation", rank=1) == [], "rank 0 tells it for both"
    best = best_of(run)
    assert best is not None
    assert (best.loss, best.step) == min((loss, step) for step, loss in losses.items())
    assert best.step != 12, "a case in which the last is the best shows nothing"
    recipe = loading.load("tiny", overrides)
    loss, tokens = loss_by_hand(recipe, run.best)
    assert (best.loss, best.label_tokens) == (pytest.approx(loss, rel=1e-5), tokens)
    assert losses[12] == pytest.approx(loss_by_hand(recipe, run.adapter)[0], rel=1e-5)

    assert sql(lorawatch_home, "SELECT step, loss, label_tokens, best FROM v_evaluations ORDER BY step") == [
        (step, loss, tokens, step == best.step) for step, loss in losses.items()
    ]
    assert sql(lorawatch_home, "SELECT best_eval_step, eval_step, evaluated_steps FROM v_runs") == [(best.step, 12, 3)]
    assert f"evaluation after step 12  loss {losses[12]:.4f}" in result.stdout
    assert f"(lowest {best.loss:.4f}, step {best.step})" in result.stdout
    assert f"best adapter   {run.best}   step {best.step}" in result.stdout
    shown = json.loads(lorawatch("show", "last", "--json").stdout)
    assert [(e["step"], e["best"]) for e in shown["evaluations"]] == [(s, s == best.step) for s in losses]
    for rank in (0, 1):
        assert ("evaluating", "after step 5") in [(p["name"], p.get("detail")) for p in journaled(run, "phase", rank)]
        (after,) = [s["duration_s"] for s in journal_steps(run, rank) if s["step"] == 6]
        assert after < 2.5, "no rank waits in a step for the disk of rank 0"

    merged = lorawatch("merge", "last", str(tmp_path / "best"), "--force", "--json", "--adapter", "best")
    report = json.loads(merged.stdout)
    assert (report["adapter"], report["step"]) == ("best", best.step)
    asked = lorawatch("chat", "last", "hello", "--force", "--max-tokens", "1")
    assert (
        f"the last adapter of run {run.run_id} (step 12); the best is of step {best.step}, evaluation" in asked.stderr
    )


SAVING = settings("train.checkpoint_every=10", "train.eval_every=5", "data.eval_share=0.1", "train.steps=60", "lora.dropout=0.1",
              "train.learning_rate=1")  # fmt: skip


def test_a_killed_run_goes_on_with_the_best_so_far(lorawatch_home: Path, tmp_path: Path) -> None:
    process = start(*TINY, *SAVING)
    run = the_run(lorawatch_home)
    wait_for_step(run, 27)
    kill_all(run, process)
    before = best_of(run)
    assert before is not None
    result = lorawatch("--record", "--resume", run.run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    first = journal_steps(run)[-1]["step"] - len([s for s in journal_steps(run) if s["attempt"] == 1])
    again = evaluated(run, attempt=1)
    assert list(again) == list(range(first + 5, 61, 5)), "none of before the checkpoint, and that of its own step"
    lowest = {int(line.split()[3]) for line in result.stdout.splitlines() if "the lowest so far" in line}
    assert all(again[step] < before.loss for step in lowest), "what was found before counts"

    other = tmp_path / "other"
    whole = lorawatch(*TINY, *SAVING, env={"LORAWATCH_HOME": str(other)})
    assert whole.returncode == 0, whole.stdout
    uninterrupted = the_run(other)
    assert evaluated(run) == evaluated(uninterrupted)
    mine, theirs = best_of(run), best_of(uninterrupted)
    assert mine is not None
    assert theirs is not None
    assert (mine.step, mine.loss, mine.label_tokens) == (theirs.step, theirs.loss, theirs.label_tokens)
    assert mine.loss <= before.loss
    adapters = [r.best / "adapter_model.safetensors" for r in (run, uninterrupted)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert sql(lorawatch_home, "SELECT count(*), count(DISTINCT step) FROM v_evaluations") == [(12, 12)]
    no_process_left(run)


DIES_WITH_A_BEST = """
import os, sys
if os.environ.get('RANK') == '0' and os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':
    import threading, time
    def plant():
        while not hasattr(sys.modules.get('lorawatch.training.trainer'), 'train'): time.sleep(.01)
        from lorawatch.system import folders
        from lorawatch.training import evaluation
        losses, replace = iter((3.0, 2.0, 1.0)), folders.{where}
        def die(*args):
            if not [d for d in os.listdir(os.path.dirname(str(args[-1]))) if d == 'best']: return replace(*args)
            {how}
        evaluation.mean_loss = lambda parts: (next(losses), 1)
        folders.{where} = die
    threading.Thread(target=plant, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("where", "how"),
    [("replace", "os.kill(os.getpid(), 9)"), ("_exchange", "replace(*args); os.kill(os.getpid(), 9)")],
)
def test_a_death_with_a_new_best_leaves_one_that_is_whole(
    lorawatch_home: Path, tmp_path: Path, where: str, how: str
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DIES_WITH_A_BEST.format(where=where, how=how))
    overrides = settings("data.eval_share=0.5", "train.eval_every=4", "train.checkpoint_every=4", "train.steps=20",
                     "launch.max_restarts=1")  # fmt: skip
    process = start(*TINY, *overrides, env={"PYTHONPATH": str(hook)})
    run = the_run(lorawatch_home)
    out = finish(process)
    assert process.returncode == 0, out
    best = best_of(run)
    assert best is not None
    # The losses made up for the first attempt are lower than any true one.
    assert (best.step, best.loss, best.attempt) == ((4, 3.0, 0) if where == "replace" else (8, 2.0, 0))
    loss_by_hand(loading.load("tiny", ["data.eval_share=0.5", "train.steps=20"]), run.best)  # it loads
    assert not list(run.root.glob(".best*")), "what was half done is gone"
    assert [e["attempt"] for e in journaled(run, "evaluation") if e["step"] == 8] == [1]


def test_a_stop_during_a_long_evaluation_is_heard_at_once(lorawatch_home: Path) -> None:
    """3.6 million rows: a quarter of an hour."""
    process = start(*TINY, *settings("train.steps=1000000", "data.eval_share=0.9", "train.eval_every=5"))
    run = the_run(lorawatch_home)
    wait_for(
        lambda: run.rank_journal(1).exists() and any(p["name"] == "evaluating" for p in journaled(run, "phase", 1))
    )
    ranks_of(run)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert process.returncode == 130, out
    assert "no evaluation after step 5: the run is to stop" in out
    assert evaluated(run) == {}
    assert journal_steps(run)[-1]["step"] == 6
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert [f.name for f in run.checkpoints.iterdir()] == ["step-00000006"]


def test_separate_ranks_evaluate_their_own_and_rank_0s_best_is_kept(lorawatch_home: Path, tmp_path: Path) -> None:
    overrides = (f"data.source={rows(tmp_path / 'rows.jsonl', 30)}", "data.eval_share=0.17", "train.steps=8",
                 "train.eval_every=4", "launch.strategy=separate", *OVERSHOOTS)  # fmt: skip
    result = lorawatch(*TINY, *settings(*overrides))
    assert result.returncode == 0, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    mine, other = (
        {e["step"]: (e["loss"], e["label_tokens"]) for e in journaled(run, "evaluation", rank)} for rank in (0, 1)
    )
    assert mine == other, "the same work"
    recipe = loading.load("tiny", overrides)
    assert mine[8] == (pytest.approx(loss_by_hand(recipe, run.adapter)[0], rel=1e-5), loss_by_hand(recipe, run.best)[1])
    assert sql(lorawatch_home, "SELECT count(*) FROM evaluations") == [(4,)]
    assert sql(lorawatch_home, "SELECT step, loss FROM v_evaluations ORDER BY step") == [
        (s, loss) for s, (loss, _) in mine.items()
    ]
    assert best_of(run) is not None


def test_what_cannot_be_evaluated_on_is_told_before_anything_is_trained(lorawatch_home: Path) -> None:
    result = lorawatch(*ONE_RANK, *settings("train.eval_every=5"))
    assert result.returncode == 2
    assert "train.eval_every is 5, but there are no rows to evaluate on" in result.stderr
    result = lorawatch(*ONE_RANK, *settings("data.eval_share=0.001"))
    assert result.returncode == 2
    assert "data.eval_share is 0.001, which of the 20 rows of synthetic is none" in result.stdout
