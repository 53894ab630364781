"""Evaluations: the mean over all label tokens, training as it would be without them, and the adapter that is kept."""

from __future__ import annotations

import errno
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trained import Trained, loss_by_hand, rows

from lorawatch.errors import LorawatchError, LossNotFinite
from lorawatch.run import checkpoints
from lorawatch.run.adapters import BestAdapter, best_of
from lorawatch.run.records import Evaluation, PhaseChange, Step
from lorawatch.training import evaluation, regions
from lorawatch.training.evaluation import RankLoss, check_equal_rows, mean_loss, rank_batches, summed_loss
from lorawatch.training.reference_trainer import ReferenceTrainer


def test_the_mean_is_over_label_tokens_and_not_over_ranks_or_batches() -> None:
    # Ten tokens of loss 1 on one rank, one of loss 12 on another, none on a third.
    assert mean_loss([RankLoss(10.0, 10), RankLoss(12.0, 1), RankLoss()]) == (2.0, 11)
    assert math.isnan(mean_loss([RankLoss(), RankLoss()])[0])
    assert math.isnan(mean_loss([RankLoss(10.0, 10), RankLoss(math.nan, 3)])[0])


@pytest.mark.parametrize(("rows", "batch", "ranks"), [(7, 2, 2), (8, 2, 2), (1, 4, 3), (5, 1, 4), (9, 4, 1)])
def test_every_row_is_in_one_batch_of_one_rank(rows: int, batch: int, ranks: int) -> None:
    shares = [rank_batches(rows, batch, rank, ranks) for rank in range(ranks)]
    assert sorted(row for batches in shares for some in batches for row in some) == list(range(rows))
    assert max(len(batches) for batches in shares) - min(len(batches) for batches in shares) <= 1
    assert all(len(some) <= batch for batches in shares for some in batches)


def test_losses_are_summed_in_pieces_where_there_are_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(11, (3, 6))
    labels[0, :3] = labels[1, 1:] = labels[2, 4] = -100
    by_hand = [
        -float(torch.log_softmax(logits[row, position].double(), -1)[labels[row, position + 1]])
        for row in range(3)
        for position in range(5)
        if labels[row, position + 1] != -100
    ]
    widened: list[int] = []
    entropy = nn.functional.cross_entropy

    def watched(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        widened.append(logits.numel())
        return entropy(logits, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "cross_entropy", watched)
    for piece, largest in ((11 * 2, 22), (1, 11), (1 << 26, 11 * 7)):
        monkeypatch.setattr(evaluation, "_MAX_FP32_LOGITS", piece)
        widened.clear()
        total, count = summed_loss(logits, labels)
        assert (count, max(widened)) == (len(by_hand), largest) == (7, largest)
        assert float(total) == pytest.approx(math.fsum(by_hand), rel=1e-6)
    assert summed_loss(logits, torch.full((3, 6), -100))[1] == 0


def test_ranks_that_would_evaluate_on_other_rows_are_named() -> None:
    check_equal_rows(["a", "a"])
    with pytest.raises(LorawatchError, match="rank 1, 3 would evaluate on other rows than rank 0"):
        check_equal_rows(["a", "b", "a", "c"])


def test_evaluating_changes_no_bit_of_a_training(tmp_path: Path) -> None:
    """With dropout, so that the random numbers count, over three epochs, so that the order of the rows does."""
    settings = [
        f"data.source={rows(tmp_path / 'rows.jsonl', 11)}", "train.steps=null", "train.epochs=3", "lora.dropout=0.2",
        "train.gradient_accumulation=2", "train.schedule=cosine",
    ]  # fmt: skip
    asked = [f"data.eval_source={rows(tmp_path / 'other.jsonl', 5)}", "train.eval_every=2"]
    for more in ([], ["train.gradient_checkpointing=true"]):
        plain, evaluated = Trained(*settings, *more), Trained(*settings, *more, *asked)
        assert evaluated.again() == plain.again()
        assert list(evaluated.evaluations) == [2, 4, 6, 8, 9]
        assert not plain.run.best.exists()
        files = [run.run.adapter / "adapter_model.safetensors" for run in (plain, evaluated)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_best_adapter_has_the_loss_that_is_told(tmp_path: Path) -> None:
    """A rate that overshoots: the best is not the last. Ragged rows, an uneven last batch."""
    run = Trained(
        f"data.source={rows(tmp_path / 'rows.jsonl', 30)}", "data.eval_share=0.17", "train.steps=11",
        "train.learning_rate=0.02", "train.schedule=constant", "train.eval_every=3", "lora.dropout=0.1",
        "lora.targets=all-linear",
    )  # fmt: skip
    run.again()
    losses = {step: loss for step, loss in run.evaluations.items() if loss is not None}
    assert list(losses) == [3, 6, 9, 11]
    best = best_of(run.run)
    assert best is not None
    assert (best.step, best.loss) == min(losses.items(), key=lambda pair: pair[1])
    assert best.step < 11, "a case in which the last is the best shows nothing"
    loss, tokens = loss_by_hand(run.recipe, run.run.best)
    assert best.loss == pytest.approx(loss, rel=1e-5)
    assert best.label_tokens == tokens
    last, _ = loss_by_hand(run.recipe, run.run.adapter)
    assert losses[11] == pytest.approx(last, rel=1e-5)
    assert (run.run.best / "tokenizer.json").is_file()
    assert json.loads((run.run.best / "evaluation.json").read_text())["step"] == best.step
    assert not list(run.run.root.glob(".best*"))


@pytest.mark.parametrize("packing", [False, True])
def test_the_fast_engine_evaluates_as_the_reference_and_compiles_nothing_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    monkeypatch.setattr(regions, "BACKEND", "eager")
    torch._dynamo.reset()
    compiled: list[int] = []
    evaluate = evaluation.Evaluator.evaluate

    def graphs() -> int:
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def counted(self: Any, *args: Any) -> Any:
        compiled.append(graphs())
        evaluated = evaluate(self, *args)
        compiled.append(graphs())
        return evaluated

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", counted)
    settings = (f"data.source={rows(tmp_path / 'rows.jsonl', 40)}", "data.eval_share=0.2", "train.steps=5", "train.eval_every=2",
            f"data.packing={str(packing).lower()}")  # fmt: skip
    fast, reference = Trained(*settings, "train.engine=fast"), Trained(*settings)
    fast.again()
    compiled.append(graphs())
    torch._dynamo.reset()
    assert not fast.events("engine_fallback")
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}, "neither in an evaluation nor in the step behind one"
    reference.again()
    assert list(fast.evaluations) == [2, 4, 5]
    for actual, expected in zip(fast.evaluations.values(), reference.evaluations.values(), strict=True):
        assert actual == pytest.approx(expected, rel=1e-4)


def test_time_and_counts_of_an_evaluation_are_in_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = summed_loss

    def slow(*args: Any) -> Any:
        time.sleep(0.2)
        return summed(*args)

    monkeypatch.setattr(evaluation, "summed_loss", slow)
    monkeypatch.setattr(evaluation, "_PROGRESS_EVERY_S", 0.0)
    run = Trained("data.eval_share=0.5", "train.eval_every=3", "train.checkpoint_every=6", "train.steps=7")
    run.again()
    lines = run.lines()
    steps = [line for line in lines if isinstance(line, Step)]
    assert {(s.tokens, s.label_tokens) for s in steps} == {(64, 62)}
    made = [line for line in lines if isinstance(line, Evaluation)]
    assert [e.step for e in made] == [3, 6, 7]
    for evaluated in made[:2]:
        assert evaluated.duration_s is not None
        assert evaluated.duration_s >= 0.8, "four batches"
        before, after = steps[evaluated.step - 1], steps[evaluated.step]
        assert after.ended_at - after.duration_s > evaluated.ended_at - 0.01 > before.ended_at + 0.7
    phases = [(line.name, line.detail) for line in lines if isinstance(line, PhaseChange)]
    for step, behind in ((3, [("training", None)]), (6, [("saving", "checkpoint"), ("training", None)])):
        at = phases.index(("evaluating", f"after step {step}"))
        assert phases[at - 1] == ("training", None)
        progress = [("evaluating", f"after step {step}, {n} of 4 batches") for n in range(4)]
        assert phases[at + 1 : at + 5 + len(behind)] == [*progress, *behind]


def test_the_best_so_far_is_known_to_a_later_attempt_and_no_evaluation_is_made_twice() -> None:
    settings = ("data.eval_share=0.5", "train.eval_every=2", "train.checkpoint_every=4", "train.steps=8",
                "train.learning_rate=10", "train.keep_checkpoints=9")  # fmt: skip
    run = Trained(*settings)
    whole = run.again()
    made, best = run.evaluations, (run.run.best / "evaluation.json").read_bytes()
    assert list(made) == [2, 4, 6, 8]
    known = best_of(run.run)
    assert known is not None
    assert known.step <= 4, "a case in which the later attempt finds the best anew shows nothing"
    checkpoints.remove(run.run.checkpoints / "step-00000008")
    assert run.again(after=4) == {n: whole[n] for n in range(5, 9)}
    assert run.evaluations == {n: made[n] for n in (6, 8)}
    assert (run.run.best / "evaluation.json").read_bytes() == best, "none was lower"

    # A best that a death has kept out of the journal is of the step that is trained again: it is saved as it was.
    late = min((6, 8), key=lambda step: made[step] or math.inf)
    (run.run.best / "evaluation.json").write_text(
        json.dumps({"step": late, "loss": made[late], "label_tokens": 1, "attempt": 0, "at": 0.0, "data": known.data})
    )
    checkpoints.remove(run.run.checkpoints / "step-00000008")
    run.again(after=4)
    latest_best = best_of(run.run)
    assert latest_best is not None
    assert (latest_best.step, latest_best.attempt, latest_best.label_tokens) == (late, 2, known.label_tokens)


def test_a_best_of_other_rows_is_given_up(tmp_path: Path) -> None:
    other = rows(tmp_path / "other.jsonl", 6)
    run = Trained(f"data.source={rows(tmp_path / 'rows.jsonl', 12)}", f"data.eval_source={other}", "train.eval_every=2",
                  "train.checkpoint_every=2", "train.steps=4")  # fmt: skip
    run.again()
    (run.run.best / "evaluation.json").write_text(
        (run.run.best / "evaluation.json").read_text().replace('"loss": ', '"loss": 0.1234567, "was": ')
    )
    rows(other, 7)
    checkpoints.remove(run.run.checkpoints / "step-00000004")
    run.again(after=2)
    (event,) = run.events("evaluation_rows_changed")
    assert "are not those of before" in event.message
    best = best_of(run.run)
    assert best is not None
    assert (best.step, best.attempt) == (4, 1)
    assert best.loss > 1


def test_a_run_that_goes_on_may_be_evaluated_from_then_on(tmp_path: Path) -> None:
    run = Trained(f"data.source={rows(tmp_path / 'rows.jsonl', 12)}", "train.checkpoint_every=2", "train.steps=6",
                  "train.keep_checkpoints=9")  # fmt: skip
    whole = run.again()
    assert run.evaluations == {}
    for step in (4, 6):
        checkpoints.remove(run.run.checkpoints / f"step-{step:08d}")
    run.recipe.data.eval_source, run.recipe.train.eval_every = str(rows(tmp_path / "other.jsonl", 3)), 3
    assert run.again(after=2) == {n: whole[n] for n in range(3, 7)}
    assert list(run.evaluations) == [3, 6]


def test_a_loss_that_is_no_number_is_no_best_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = summed_loss
    monkeypatch.setattr(evaluation, "summed_loss", lambda *a: (summed(*a)[0] * math.nan, summed(*a)[1]))
    run = Trained("data.eval_share=0.5", "train.eval_every=5")
    assert len(run.again()) == 10
    assert run.evaluations == {5: None, 10: None}
    assert [e.message for e in run.events("evaluation_nan")] == [
        f"the loss of the evaluation after step {n} is nan" for n in (5, 10)
    ]
    assert best_of(run.run) is None
    assert not run.run.best.exists()


def test_a_training_that_has_broken_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        step = ReferenceTrainer.training_step

        def broken(self: Any, *args: Any) -> Any:
            result = step(self, *args)
            if self.state.global_step == 2:
                self.step_callback.not_finite = (3, math.nan)
            return result

        patched.setattr(ReferenceTrainer, "training_step", broken)
        run = Trained("data.eval_share=0.5", "train.eval_every=2", "train.steps=4")
        with pytest.raises(LossNotFinite):
            run.again()
    assert list(run.evaluations) == [2]
    assert [e.message for e in run.events("evaluation_cut")] == [
        "no evaluation after step 4: the loss is nan since step 3"
    ]


def test_a_stop_cuts_an_evaluation_short_and_leaves_one_that_is_due_out(monkeypatch: pytest.MonkeyPatch) -> None:
    summed, seen = summed_loss, []

    def ask(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            run.run.request("stop")
            deadline = time.monotonic() + 5
            while not observed[0].stopping.requested and time.monotonic() < deadline:
                pass
        return summed(*args)

    observed: list[Any] = []
    part = evaluation.Evaluator._rank_loss

    def remember(self: Any, *args: Any) -> Any:
        observed[:] = [self._observer]
        return part(self, *args)

    monkeypatch.setattr(evaluation, "summed_loss", ask)
    monkeypatch.setattr(evaluation.Evaluator, "_rank_loss", remember)
    run = Trained("data.eval_share=0.5", "train.eval_every=1", "train.steps=20")
    steps = run.again()
    assert len(seen) == 3, "of 10 batches"
    assert run.evaluations == {}
    assert list(steps) == [1, 2], "one more step, after which all ranks stop"
    assert [e.message for e in run.events("evaluation_cut")] == ["no evaluation after step 1: the run is to stop"]
    assert run.saved == [2]


def test_a_disk_that_refuses_the_best_adapter_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    save = evaluation.save_adapter

    def full(target: Path, model: Any, tokenizer: Any, best: BestAdapter) -> None:
        if best.step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(target, model, tokenizer, best)

    monkeypatch.setattr(evaluation, "save_adapter", full)
    losses = iter((3.0, 2.0, 2.5, 1.0))
    monkeypatch.setattr(evaluation, "mean_loss", lambda parts: (next(losses), 1))
    run = Trained("data.eval_share=0.5", "train.eval_every=2", "train.steps=8")
    kept = []
    keep = evaluation.Evaluator._save_best

    def watch(self: Any, *args: Any) -> None:
        keep(self, *args)
        kept.append(best_of(self._observer.run))

    monkeypatch.setattr(evaluation.Evaluator, "_save_best", watch)
    assert len(run.again()) == 8
    assert [best.step for best in kept if best] == [2, 2, 6, 8], "2.5 is lower than what there is"
    (event,) = run.events("best_not_saved")
    assert event.severity == "warning"
    assert event.message.startswith(
        "the best adapter, of step 4, is not saved; that of step 2 stays: [Errno 28] No space"
    )
