"""StepCallback in a plain Trainer, as a user's script has it: one line, measured against a computation by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from lorawatch import StepCallback
from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Evaluation, PhaseChange, RankStarted, Step
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.collator import Collator
from lorawatch.training.data import TokenizedData
from lorawatch.training.tokenization import Example


def ragged(rows: int) -> TokenizedData:
    """Rows of different lengths with different numbers of labels."""
    data = TokenizedData()
    for i in range(rows):
        length = 4 + 3 * (i % 5)
        ids = [(7 * i + k) % 300 for k in range(length)]
        data.add(Example(ids, [k >= length - 2 - i % 2 for k in range(length)]), 64)
    return data


def trainer_for(folder: Path, callback: StepCallback, **options: Any) -> Trainer:
    recipe = loading.load("tiny")
    model = models.load_model(models.plan_model(recipe), recipe, torch.device("cpu"))
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"logging_strategy": "no", "save_strategy": "no", "learning_rate": 1e-9, **options},
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=ragged(40),
        eval_dataset=ragged(8),
        data_collator=Collator(0, BatchCounts()),
        callbacks=[callback],
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    monkeypatch.setenv("LORAWATCH_RUN_DIR", str(run.root))
    return run


def lines(run: RunDir) -> list[Any]:
    return list(JournalTail(run.rank_journal(0)).records())


def losses_by_hand(model: Any, seen: list[Any], per_step: int) -> list[tuple[float, int, int, int]]:
    """Mean loss over label tokens, label tokens, real tokens and positions of each step, in the Trainer's order."""
    result = []
    batches = iter(seen)
    for group in zip(*[batches] * per_step, strict=True):
        total, labels, nonpad, positions = 0.0, 0, 0, 0
        for batch in group:
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
            wanted = batch["labels"][:, 1:]
            scores = torch.log_softmax(logits[:, :-1].double(), -1)
            for row, column in zip(*torch.nonzero(wanted != -100, as_tuple=True), strict=True):
                total -= float(scores[row, column, wanted[row, column]])
                labels += 1
            mask = batch.get("attention_mask")
            nonpad += int(mask.sum()) if mask is not None else batch["input_ids"].numel()
            positions += batch["input_ids"].numel()
        result.append((total / labels, labels, nonpad, positions))
    return result


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loss_and_counts_equal_a_computation_by_hand(run: RunDir, tmp_path: Path, accumulation: int) -> None:
    trainer = trainer_for(
        tmp_path, StepCallback(), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation
    )
    seen: list[Any] = []
    collate = trainer.data_collator

    def remember(items: Any) -> Any:
        batch = collate(items)
        seen.append(batch)
        return batch

    trainer.data_collator = remember
    trainer.train()
    del seen[4 * accumulation :]  # accelerate reads one batch ahead
    steps = [line for line in lines(run) if isinstance(line, Step)]
    by_hand = losses_by_hand(trainer.model, seen, accumulation)
    assert [s.step for s in steps] == [1, 2, 3, 4]
    for step, (loss, labels, nonpad, positions) in zip(steps, by_hand, strict=True):
        assert (step.label_tokens, step.nonpad_tokens, step.tokens) == (labels, nonpad, positions)
        assert step.loss == pytest.approx(loss, rel=1e-5)
        assert step.grad_norm is not None
        assert step.data_wait_s is not None
        assert 0 < step.data_wait_s < step.duration_s
    assert [s.phase for s in steps] == ["warmup", "train", "train", "train"]
    assert steps[1].learning_rate == pytest.approx(0.75e-9)


def test_the_journal_says_who_and_what(run: RunDir, tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, StepCallback(exclude_steps=0), max_steps=2)
    trainer.train()
    first, *rest = lines(run)
    assert isinstance(first, RankStarted)
    assert (first.rank, first.world_size, first.steps_total, first.device) == (0, 1, 2, "cpu")
    assert (first.lora_parameters, first.dtype) == (1792, "float32")
    assert [line.phase for line in rest if isinstance(line, Step)] == ["train", "train"]
    assert [line.name for line in rest if isinstance(line, PhaseChange)] == ["training", "finished"]


def test_evaluations_and_checkpoints_belong_to_no_step(run: RunDir, tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path, StepCallback(), max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2
    )
    predict = trainer.prediction_step
    evaluating: list[tuple[float, float]] = []

    def prediction_step(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        time.sleep(0.5)
        evaluating.append((began, time.time()))
        return predict(*args, **kwargs)

    trainer.prediction_step = prediction_step
    trainer.train()
    steps = [line for line in lines(run) if isinstance(line, Step)]
    assert len(evaluating) == 2
    for begin, end in evaluating:
        assert all(s.ended_at <= begin + 0.01 or s.ended_at - s.duration_s >= end - 0.01 for s in steps)
    assert all(s.tokens is not None and s.tokens < 200 for s in steps)  # evaluated rows are not counted
    made = [line for line in lines(run) if isinstance(line, Evaluation)]
    logged = [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [(line.step, line.loss) for line in made] == logged
    assert [line.step for line in made] == [2, 4]
    assert all((line.rank, line.label_tokens) == (0, None) and (line.duration_s or 0) >= 0.5 for line in made)
    phases = [line.name for line in lines(run) if isinstance(line, PhaseChange)]
    assert phases[:2] == ["training", "evaluating"]
    assert phases[-2:] == ["training", "finished"]


def test_a_stop_request_ends_training_with_a_checkpoint(run: RunDir, tmp_path: Path) -> None:
    callback = StepCallback()
    trainer = trainer_for(tmp_path, callback, max_steps=100_000)
    run.control.mkdir()
    run.request("stop")
    trainer.train()
    assert callback.stopped_at is not None
    assert callback.stopped_at < 100_000
    assert trainer.state.global_step == callback.stopped_at
    state = json.loads((tmp_path / "out" / f"checkpoint-{callback.stopped_at}" / "trainer_state.json").read_text())
    assert state["global_step"] == callback.stopped_at


def test_a_request_for_a_checkpoint_saves_one_and_training_goes_on(run: RunDir, tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, StepCallback(), max_steps=300)
    run.control.mkdir()
    run.request("checkpoint")
    trainer.train()
    assert trainer.state.global_step == 300
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    assert json.loads((saved / "trainer_state.json").read_text())["global_step"] < 300


def test_without_a_run_directory_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LORAWATCH_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="lorawatch.training.callback"):
        trainer_for(tmp_path, StepCallback(), max_steps=1).train()
    assert [r.message for r in caplog.records] == ["lorawatch: LORAWATCH_RUN_DIR is not set, so nothing is recorded"]
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_run_directory_that_cannot_be_written_never_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("LORAWATCH_RUN_DIR", str(blocked / "run"))
    trainer = trainer_for(tmp_path, StepCallback(), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
