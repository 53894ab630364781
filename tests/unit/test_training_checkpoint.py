"""A training that goes on from a checkpoint is the training that was never interrupted, bit for bit."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import Trained, rows

from lorawatch.errors import CheckpointError, LossNotFinite
from lorawatch.run import checkpoints
from lorawatch.training.collator import Collator
from lorawatch.training.data import SyntheticData


def test_whatever_step_it_goes_on_from_the_curve_is_the_same(tmp_path: Path) -> None:
    """Three epochs of 11 rows in steps of up to 4: in the middle of an epoch, at its end, and after it; with dropout, so
    that the random numbers count, and a schedule that changes every step."""
    data = rows(tmp_path / "rows.jsonl", 11)
    run = Trained(
        f"data.source={data}", "train.steps=null", "train.epochs=3", "train.gradient_accumulation=2",
        "train.checkpoint_every=1", "train.keep_checkpoints=99", "lora.dropout=0.2", "train.schedule=cosine",
    )  # fmt: skip
    whole = run.again()
    assert list(whole) == list(range(1, 10))
    assert len({loss for loss, *_ in whole.values()}) == 9
    for step in range(8, 0, -1):
        assert run.again(after=step) == {n: whole[n] for n in range(step + 1, 10)}, f"after step {step}"
    assert [e.message for e in run.events("resumed")][-1] == "training goes on after step 1, from step-00000001"


def test_saving_changes_nothing(tmp_path: Path) -> None:
    assert Trained("lora.dropout=0.2", "train.checkpoint_every=2").again() == Trained("lora.dropout=0.2").again()


def test_going_on_at_step_10000_computes_and_collates_no_batch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trained("train.steps=10002", "train.checkpoint_every=4")
    run.recipe.train.steps = 4
    run.again()
    early = checkpoints.read(run.run.checkpoints / "step-00000004")
    late = early.folder.rename(run.run.checkpoints / "step-00010000")
    state = late / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 4', '"global_step": 10000'))
    early.manifest.step = 10000
    early.manifest.files["trainer_state.json"] = checkpoints.stored(state)
    checkpoints.write_manifest(late, early.manifest)
    run.recipe.train.steps = 10002

    read: list[int] = []
    collated: list[int] = []
    item, collate = SyntheticData.__getitem__, Collator.__call__
    monkeypatch.setattr(SyntheticData, "__getitem__", lambda self, i: read.append(i) or item(self, i))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Collator, "__call__", lambda self, items: collated.append(1) or collate(self, items))  # type: ignore[func-returns-value]
    assert list(run.again()) == [10001, 10002]
    assert read == [20000, 20001, 20002, 20003]
    assert len(collated) == 2


def test_more_steps_go_on_with_the_rows_that_a_longer_run_has(tmp_path: Path) -> None:
    short = Trained("train.steps=5", "train.checkpoint_every=5", "train.schedule=constant")
    first = short.again()
    short.recipe.train.steps = 9
    rest = short.again()
    assert list(rest) == [6, 7, 8, 9]
    assert {**first, **rest} == Trained("train.steps=9", "train.schedule=constant").again()


def test_the_last_two_stay_and_the_last_step_is_one_of_them() -> None:
    run = Trained("train.steps=11", "train.checkpoint_every=3")
    run.again()
    assert run.saved == [9, 11]
    assert not [p.name for p in run.run.checkpoints.iterdir() if p.name.startswith(".")]
    checkpoint = checkpoints.read(run.run.checkpoints / "step-00000009")
    assert (checkpoint.manifest.step, checkpoint.manifest.attempt, checkpoint.manifest.world_size) == (9, 0, 1)
    assert (checkpoint.manifest.epoch, checkpoint.manifest.batches_into_epoch) == (pytest.approx(9 / 11), 9)
    assert set(checkpoint.manifest.files) >= {
        "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json",
        "rng_state.pth",
    }  # fmt: skip
    assert checkpoint.manifest.versions["torch"] == torch.__version__


def test_a_damaged_checkpoint_is_passed_over_and_said() -> None:
    run = Trained("train.steps=6", "train.checkpoint_every=2")
    whole = run.again()
    weights = run.run.checkpoints / "step-00000006" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run.again() == {n: whole[n] for n in (5, 6)}
    (warning,) = run.events("checkpoint_refused")
    assert warning.severity == "warning"
    assert "step-00000006: adapter_model.safetensors has" in warning.message
    assert "it is passed over" in warning.message


def test_without_a_good_checkpoint_training_begins_again() -> None:
    run = Trained("train.steps=4", "train.checkpoint_every=4")
    whole = run.again()
    (run.run.checkpoints / "step-00000004" / "optimizer.pt").unlink()
    assert run.again() == whole
    assert "begins at step 1" in run.events("checkpoint_refused")[-1].message


def test_other_rows_are_refused(tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", 12)
    run = Trained(f"data.source={data}", "train.steps=4", "train.checkpoint_every=2")
    run.again()
    rows(data, 13)
    run.recipe.train.steps = 8
    with pytest.raises(CheckpointError, match="step-00000004 was trained on other rows"):
        run.again()


def test_a_save_that_the_disk_refuses_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trained("train.steps=7", "train.checkpoint_every=2")
    save = torch.save

    def full(what: Any, where: Any, *args: Any, **kwargs: Any) -> None:
        if "step-00000004" in str(where) and str(where).endswith("optimizer.pt"):
            Path(where).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(what, where, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    seen: list[list[int]] = []
    save_state = checkpoints.write_manifest
    monkeypatch.setattr(
        checkpoints, "write_manifest", lambda folder, m: (seen.append(run.saved), save_state(folder, m))[1]
    )
    assert list(run.again()) == [1, 2, 3, 4, 5, 6, 7]
    assert seen == [[], [2], [2, 6]], "the one before stayed while the next was refused"
    assert run.saved == [6, 7]
    (warning,) = run.events("checkpoint_failed")
    assert warning.message.startswith("no checkpoint of step 4: rank 0 cannot write its part: [Errno 28] No space left")
    assert warning.message.endswith("step-00000002 stays.")
    assert not [p.name for p in run.run.checkpoints.iterdir() if p.name.startswith(".")]


@pytest.fixture
def broken_at_step_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of step 5 is NaN, and so is all that comes of it."""
    from lorawatch.training.callback import StepCallback

    loss, before, now = torch.nn.functional.cross_entropy, StepCallback.on_step_begin, [0]

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        now[0] = state.global_step + 1
        return before(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepCallback, "on_step_begin", on_step_begin)
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *a, **k: loss(*a, **k) * (math.nan if now[0] == 5 else 1)
    )


@pytest.mark.usefixtures("broken_at_step_5")
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_loss_that_is_no_number_stops_the_run_and_the_last_good_checkpoint_stays(every: int) -> None:
    run = Trained("train.steps=10000", f"train.checkpoint_every={every}")
    good = {1: "; step-00000004 is the last good checkpoint", 2: "; step-00000004 is the last good checkpoint", 5: ""}
    with pytest.raises(LossNotFinite) as stopped:
        run.again()
    assert stopped.value.message == f"rank 0's loss is nan at step 5{good[every]}"
    assert "lower train.learning_rate (0.001)" in str(stopped.value.hint)
    assert (f"--resume {run.run.run_id} --on-nan continue" in str(stopped.value.hint)) == (every != 5)
    (event,) = run.events("nan_loss")
    assert (event.severity, event.message) == ("error", "rank 0's loss is nan at step 5")
    assert max(run.saved, default=4) == 4, "what the loss broke is not kept"
    assert not run.run.adapter.exists()


@pytest.mark.usefixtures("broken_at_step_5")
def test_a_loss_that_is_no_number_may_be_left_to_the_user() -> None:
    run = Trained("train.steps=9", "train.checkpoint_every=3", "train.on_nan=continue")
    assert list(run.again()) == list(range(1, 10))
    (event,) = run.events("nan_loss")
    assert (event.severity, event.message) == ("warning", "rank 0's loss is nan at step 5; training goes on")
    assert run.saved == [3]
    assert "weights are no longer finite numbers" in run.events("checkpoint_failed")[-1].message


def test_a_checkpoint_is_saved_whenever_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorawatch.training.callback import StepCallback

    run = Trained("train.steps=40")
    after = StepCallback.on_step_end

    def ask(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step in (5, 20):
            run.run.request("checkpoint")
            self.read_back()
        return after(self, args, state, control, **kwargs)

    monkeypatch.setattr(StepCallback, "on_step_end", ask)
    run.again()
    assert run.saved == [5, 20]
