"""`lorawatch --record --resume RUN` with the real program: what is killed, stopped or done goes on, on the same curve."""

from __future__ import annotations

import json
import shutil
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

from lorawatch.run import checkpoints
from lorawatch.run.directory import RunDir

LONG = ("--set", "train.steps=100000")
SAVING = ("--set", "train.checkpoint_every=10", "--set", "lora.dropout=0.1", "--set", "train.schedule=cosine")
Values = tuple[Any, ...]


def curve(run: RunDir) -> dict[tuple[int, int], Values]:
    """What each rank's steps came to; the latest attempt counts where several took a step."""
    taken: dict[tuple[int, int], tuple[int, Values]] = {}
    for rank in (0, 1):
        for s in journal_steps(run, rank):
            values = (s["loss"], s["grad_norm"], s["learning_rate"], s["tokens"])
            if (rank, s["step"]) not in taken or taken[rank, s["step"]][0] < s["attempt"]:
                taken[rank, s["step"]] = (s["attempt"], values)
    return {key: values for key, (_, values) in taken.items()}


def steps_of(run: RunDir, attempt: int, rank: int = 0) -> list[int]:
    return [s["step"] for s in journal_steps(run, rank) if s["attempt"] == attempt]


def saved(run: RunDir) -> list[int]:
    return sorted(checkpoints.step_of(f) for f in checkpoints.folders(run.checkpoints))


def test_a_run_whose_processes_were_all_killed_goes_on_bit_for_bit(lorawatch_home: Path, tmp_path: Path) -> None:
    steps = ("--set", "train.steps=150")
    process = start(*TINY, *SAVING, *steps)
    run = the_run(lorawatch_home)
    wait_for_step(run, 25)
    kill_all(run, process)
    reached = max(s["step"] for s in journal_steps(run))
    from_step = saved(run)[-1]
    assert reached - from_step <= 11, "at most one interval, and the save under way, is repeated"

    result = lorawatch("--record", "--resume", run.run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"run {run.run_id} goes on after step {from_step}, attempt 1" in result.stderr
    assert steps_of(run, 1) == list(range(from_step + 1, 151))
    first = journal_steps(run)[-150 + from_step :][0]
    assert (first["step"], first["phase"]) == (from_step + 1, "warmup"), "a window restarts after a resume"
    assert sql(lorawatch_home, "SELECT state, attempts, step FROM runs") == [("completed", 2, 150)]
    assert sql(lorawatch_home, "SELECT count(*), count(DISTINCT step) FROM v_steps") == [(150, 150)]
    assert sql(lorawatch_home, "SELECT count(*) FROM run_summary") == [(1,)]
    (kinds,) = sql(lorawatch_home, "SELECT list(DISTINCT kind) FROM events WHERE kind IN ('resumed', 'checkpoint')")
    assert set(kinds[0]) == {"resumed", "checkpoint"}
    no_process_left(run)

    other = tmp_path / "other"
    whole = lorawatch(*TINY, *SAVING, *steps, env={"LORAWATCH_HOME": str(other)})
    assert whole.returncode == 0, whole.stdout
    assert curve(run) == curve(the_run(other))
    adapters = [r.adapter / "adapter_model.safetensors" for r in (run, the_run(other))]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_four_ranks_sum_their_gradients_in_the_same_order_again(lorawatch_home: Path) -> None:
    """Adapters large enough for several of DDP's buckets, whose layout changes after a training's first step."""
    big = ("--set", "lora.targets=[q_proj,k_proj,v_proj,o_proj,up_proj,down_proj,gate_proj]", "--set", "lora.rank=64")
    result = lorawatch(*TINY, *SAVING[2:], *big, "--gpus", "cpu:4", "--set", "train.steps=9",
                       "--set", "train.checkpoint_every=3", "--set", "train.keep_checkpoints=9")  # fmt: skip
    assert result.returncode == 0, result.stdout
    run = the_run(lorawatch_home)
    result = lorawatch("--record", "--resume", run.run_id, "--from", "step-3")
    assert result.returncode == 0, result.stdout + result.stderr
    for rank in range(4):
        once, again = ([(s["step"], s["loss"], s["grad_norm"], s["tokens"]) for s in journal_steps(run, rank)
                        if s["attempt"] == attempt and s["step"] > 3] for attempt in (0, 1))  # fmt: skip
        assert len(again) == 6
        assert once == again


def test_a_stopped_run_goes_on_where_it_stopped_also_in_the_background(lorawatch_home: Path) -> None:
    process = start(*ONE_RANK, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    process.send_signal(signal.SIGINT)
    finish(process)
    (stopped_at,) = saved(run)
    assert stopped_at == max(s["step"] for s in journal_steps(run))
    total = stopped_at + 20
    result = lorawatch("--record", "--resume", "last", "--detach", "--set", f"train.steps={total}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == run.run_id
    assert f"train.steps 100000 → {total}" in result.stderr
    assert lorawatch("runs").returncode == 0  # which looks for runs that nobody records
    followed = lorawatch("attach", run.run_id, "--json")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert steps_of(run, 1) == list(range(stopped_at + 1, total + 1))
    assert sql(lorawatch_home, "SELECT state, attempts, steps_total FROM runs") == [("completed", 2, total)]
    no_process_left(run)


def test_a_restart_goes_on_from_the_last_good_checkpoint_by_itself(lorawatch_home: Path) -> None:
    process = start(*TINY, *SAVING, "--set", "train.steps=150", "--set", "launch.max_restarts=2")
    run = the_run(lorawatch_home)
    wait_for_step(run, 35)
    ranks_of(run)[1].kill()
    out = finish(process, 180)
    assert process.returncode == 0, out
    assert "training goes on after step" in out
    first = steps_of(run, 1)[0]
    assert first > 30
    assert (first - 1) % 10 == 0
    assert first - 1 >= max(steps_of(run, 0)) - 11
    assert sql(lorawatch_home, "SELECT state, attempts FROM runs") == [("completed", 2)]
    assert sql(lorawatch_home, "SELECT count(*) FROM v_steps") == [(150,)]


def test_a_checkpoint_is_saved_when_somebody_asks(lorawatch_home: Path) -> None:
    process = start(*ONE_RANK, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    assert saved(run) == []
    run.request("checkpoint")
    wait_for(lambda: len(saved(run)) == 1)
    (first,) = saved(run)
    checkpoints.read(run.checkpoints / checkpoints.folder_name(first))
    wait_for_step(run, first + 5)
    run.request("checkpoint")
    wait_for(lambda: len(saved(run)) == 2)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert process.returncode == 130, out
    assert f"{checkpoints.folder_name(first)} saved" in out


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a completed run of 6 steps, checkpoints at 4 and 6."""
    home = tmp_path_factory.mktemp("done")
    result = lorawatch(
        *TINY, "--set", "train.steps=6", "--set", "train.checkpoint_every=4", env={"LORAWATCH_HOME": str(home)}
    )
    assert result.returncode == 0, result.stdout
    return home


@pytest.fixture
def run(done: Path, lorawatch_home: Path) -> RunDir:
    """The same in a home of its own."""
    shutil.copytree(done, lorawatch_home)
    return the_run(lorawatch_home)


def refused(*args: str) -> str:
    """What a resume that must not begin says."""
    result = lorawatch("--record", "--resume", *args)
    assert result.returncode in (2, 3), result.stdout + result.stderr
    assert result.stdout == ""
    return result.stderr


def test_a_run_that_died_between_its_last_checkpoint_and_its_adapter_gets_the_adapter(lorawatch_home: Path) -> None:
    # The last step is in the middle of an epoch, where the Trainer would take one more before it looks.
    settings = ("train.steps=3", "train.checkpoint_every=2", "data.source=demo")
    result = lorawatch(*ONE_RANK, *(word for setting in settings for word in ("--set", setting)))
    assert result.returncode == 0, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    weights, steps = (run.adapter / "adapter_model.safetensors").read_bytes(), journal_steps(run)
    shutil.rmtree(run.adapter)
    result = lorawatch("--record", "--resume", run.run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == weights
    assert (run.state().state, run.state().step) == ("completed", 3)
    assert journal_steps(run) == steps, "no step is taken again, and none beyond the last"


def test_what_cannot_go_on_is_refused_before_anything_changes(run: RunDir) -> None:
    before = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
    words = refused(run.run_id)
    assert f"run {run.run_id} has nothing left to do: step-00000006 is at step 6 of 6" in words
    assert "--set train.steps=12" in words
    words = refused(run.run_id, "--set", "train.learning_rate=1", "--set", "train.steps=9", "--set", "lora.rank=8")
    assert "lora.rank is 4 and would be 8; train.learning_rate is 0.001 and would be 1" in words
    assert "what may change: train.steps, train.epochs, train.checkpoint_every" in words
    words = refused(run.run_id, "--set", "train.steps=9", "--gpus", "cpu:3")
    assert "was trained on 2 × cpu and would go on on 3 × cpu" in words
    assert "each rank would get other rows" in words
    assert "no checkpoint 'step-5'" in refused(run.run_id, "--from", "step-5")
    assert "there: step-00000006, step-00000004" in refused(run.run_id, "--from", "step-5")
    assert "do not go with it" in refused(run.run_id, "tiny")
    assert "unknown key train.stepz" in refused(run.run_id, "--set", "train.stepz=9")
    assert {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()} == before


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_offered(run: RunDir, lorawatch_home: Path) -> None:
    more = ("--set", "train.steps=8")
    weights = run.checkpoints / "step-00000006" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    words = refused(run.run_id, *more)
    assert "step-00000006: adapter_model.safetensors has 100 bytes, but" in words
    assert f"the one before it is good: lorawatch --record --resume {run.run_id} --from step-00000004" in words
    result = lorawatch("--record", "--resume", run.run_id, *more, "--from", "step-4")
    assert result.returncode == 0, result.stdout + result.stderr
    assert steps_of(run, 1) == [5, 6, 7, 8]
    assert saved(run) == [4, 8]
    # with more steps the learning rate is another, but the next step computes its loss with the same weights
    once, again = (s for s in journal_steps(run) if s["step"] == 5)
    assert once["loss"] == again["loss"]
    assert sql(lorawatch_home, "SELECT state, attempts, step FROM runs") == [("completed", 2, 8)]


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(run: RunDir) -> None:
    folder = run.checkpoints / "step-00000006"
    manifest = checkpoints.read(folder).manifest
    manifest.recipe["lora"]["rank"] = 16
    checkpoints.write_manifest(folder, manifest)
    words = refused(run.run_id, "--set", "train.steps=8")
    assert "step-00000006 is from another recipe: lora.rank is 16 there and 4 here" in words
    assert "--from step-00000004" in words
    shutil.rmtree(run.checkpoints)
    assert "has no checkpoint to go on from" in refused(run.run_id, "--set", "train.steps=8")


def test_a_living_run_and_a_command_are_refused(lorawatch_home: Path) -> None:
    process = start(*ONE_RANK, *LONG, *SAVING)
    run = the_run(lorawatch_home)
    wait_for_step(run, 12)
    assert f"run {run.run_id} lives" in refused(run.run_id)
    process.kill()
    process.wait()
    assert f"lorawatch adopt {run.run_id} records on" in refused(run.run_id)
    kill_all(run, process)
    assert lorawatch("--record", "--", "true").returncode == 0
    assert "is a command of your own" in refused("last")
    result = lorawatch("--record", "tiny", "--from", "step-4")
    assert result.returncode == 2
    assert "--resume RUN names the run" in result.stderr


BROKEN_AT_STEP_12 = """
import os, sys
if os.environ.get('RANK') == '1':
    import threading, time
    def plant():
        while not hasattr(sys.modules.get('lorawatch.training.trainer'), 'train'): time.sleep(.01)
        import torch
        from lorawatch.training.callback import StepCallback
        loss, begin, now = torch.nn.functional.cross_entropy, StepCallback.on_step_begin, [0]
        def on_step_begin(self, args, state, control, **kwargs):
            now[0] = state.global_step + 1
            return begin(self, args, state, control, **kwargs)
        StepCallback.on_step_begin = on_step_begin
        torch.nn.functional.cross_entropy = lambda *a, **k: loss(*a, **k) * (float('nan') if now[0] == 12 else 1)
    threading.Thread(target=plant, daemon=True).start()
"""


def test_a_loss_that_is_no_number_ends_the_run_with_step_and_rank(lorawatch_home: Path, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(BROKEN_AT_STEP_12)
    args = (*TINY, *SAVING, "--set", "train.steps=1000", "--set", "launch.max_restarts=2")
    result = lorawatch(*args, env={"PYTHONPATH": str(hook)})
    run = the_run(lorawatch_home)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "error: rank 1's loss is nan at step 12" in result.stdout
    state = run.state()
    assert (state.state, state.failure) == ("failed", "nan_loss")
    assert state.message is not None
    assert state.message.startswith("rank 1's loss is nan at step 12; step-00000010 is the last good checkpoint\nlower")
    assert sql(lorawatch_home, "SELECT state, failure, attempts FROM runs") == [("failed", "nan_loss", 1)]
    assert saved(run) == [10]
    no_process_left(run)

    on = lorawatch("--record", "--resume", run.run_id, "--on-nan", "continue", "--set", "train.steps=20", "--json",
                   env={"PYTHONPATH": str(hook)})  # fmt: skip
    assert on.returncode == 0, on.stdout + on.stderr
    lines = [json.loads(line) for line in on.stdout.splitlines()]
    assert [line["step"] for line in lines if line["type"] == "step"] == list(range(11, 21)), "only what is new"
    warned = [line for line in lines if line["type"] == "event" and line["kind"] == "nan_loss"]
    assert {w["severity"] for w in warned} == {"warning"}
