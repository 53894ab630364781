"""The fast engine's parts: batches of one shape, the compiled regions, a recorded step under the real Trainer."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fakes.graph import RecordedEngine, repeating
from torch import nn

from lorawatch.recipe import loading, schema
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Event, PhaseChange, Step
from lorawatch.training import compile_cache, regions
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.callback import StepCallback
from lorawatch.training.collator import Collator
from lorawatch.training.data import TokenizedData
from lorawatch.training.fast_engine import FastEngine, Level, StaticCollator, trainer_arguments
from lorawatch.training.graph import GraphedLoss, aliased_parameters
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments
from lorawatch.training.regions import Regions
from lorawatch.training.split_backward import (
    PartResult,
    StepComputation,
    split_backward,
    split_backward_if_equal,
    unsplit_backward,
)
from lorawatch.training.tokenization import Example


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo alone; what it finds runs as it stands."""
    monkeypatch.setattr(regions, "BACKEND", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tiny(*overrides: str, layers: int = 2) -> tuple[schema.Recipe, Any]:
    recipe = loading.load("tiny", ["train.engine=fast", *overrides])
    plan = models.plan_model(recipe)
    plan.config.num_hidden_layers = layers
    plan.config.use_cache = False  # as the Trainer sets it
    return recipe, models.load_model(plan, recipe, torch.device("cpu"))


def item(ids: list[int], labels: list[int]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def test_every_batch_has_one_shape_and_counts_what_is_computed() -> None:
    counts = BatchCounts()
    collator = StaticCollator(9, counts, rows=3, length=5)
    batch = collator([item([1, 2, 3], [-100, 2, 3]), item([4, 5, 6, 7, 8], [4, 5, 6, 7, 8])])
    assert sorted(batch) == ["input_ids", "labels"]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 9], [4, 5, 6, 7, 8], [9, 9, 9, 9, 9]]
    none = [-100] * 5
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100], [4, 5, 6, 7, 8], none]
    assert counts.take((3, 5)) == (8, 6)  # the label of a row's first position is nobody's prediction
    collator.padding = False
    assert collator([item([1, 2, 3], [1, 2, 3])])["input_ids"].shape == (1, 3)


def test_padding_without_a_mask_changes_no_loss_and_no_gradient() -> None:
    _, model = tiny()
    rows = [item(list(range(3, 10)), list(range(3, 10))), item([5, 6, 7], [-100, 6, 7])]
    results = []
    for collate in (Collator(0, BatchCounts()), StaticCollator(0, BatchCounts(), 3, 32)):
        loss = model(**collate(rows), num_items_in_batch=torch.tensor(8)).loss
        results.append((loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])))
    for masked, padded in zip(*results, strict=True):
        torch.testing.assert_close(masked, padded, rtol=1e-4, atol=1e-7)


def test_equal_layers_are_compiled_once_and_undone_without_a_trace() -> None:
    _, model = tiny(layers=5)
    base = model.get_base_model()
    names = list(model.state_dict())
    batch = {"input_ids": torch.arange(64).view(2, 32), "labels": torch.arange(64).view(2, 32)}
    plain = model(**batch).loss
    compiled = Regions(base, 32)
    assert str(compiled) == "5 × LlamaDecoderLayer"
    torch._dynamo.utils.counters.clear()
    compiled.compile()
    for _ in range(3):
        loss = model(**batch).loss
        loss.backward()
    assert list(model.state_dict()) == names
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    # The first layer, whose input needs no gradient; all others; the last norm; the loss. None twice.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert base.config._attn_implementation == regions.CAUSAL
    compiled.restore()
    torch._dynamo.utils.counters.clear()
    assert torch.equal(model(**batch).loss, plain)
    assert base.config._attn_implementation == "sdpa"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_a_window_of_attention_shorter_than_the_rows_keeps_its_mask() -> None:
    _, model = tiny()
    base = model.get_base_model()
    for window, implementation in ((31, "sdpa"), (32, regions.CAUSAL)):
        base.config.sliding_window = window
        compiled = Regions(base, 32)
        compiled.compile()
        assert base.config._attn_implementation == implementation
        compiled.restore()


def test_a_model_without_equal_layers_says_so() -> None:
    with pytest.raises(ValueError, match="Sequential has no list of equal layers"):
        Regions(nn.Sequential(nn.Linear(2, 2)), 32)


def test_a_recorded_loss_hands_out_scaled_gradients_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))

    def compute(inputs: Any) -> PartResult:
        loss = (weight * inputs["x"]).sum() + bias
        return loss.detach(), torch.autograd.grad(loss, [weight, bias])

    passes = StepComputation([compute], [[0, 1]])
    graphed = GraphedLoss(passes, {"x": torch.zeros(2)}, [weight, bias], repeating)
    handed: list[torch.Tensor] = []
    backward = graphed.backward

    def kept(upstream: torch.Tensor) -> list[torch.Tensor]:
        handed[:] = backward(upstream)
        pointers[:] = [t.data_ptr() for t in handed]
        return [handed.pop(0) for _ in range(2)]

    pointers: list[int] = []
    monkeypatch.setattr(graphed, "backward", kept)
    assert graphed.accepts({"x": torch.ones(2)})
    assert not graphed.accepts({"x": torch.ones(3)})
    assert not graphed.accepts({"x": torch.ones(2), "y": torch.ones(2)})
    loss = graphed({"x": torch.tensor([10.0, 100.0])})
    assert loss.item() == 213
    loss *= 4  # as the Trainer does for the number of ranks
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [40, 400]
    assert bias.grad is not None and bias.grad.item() == 4
    graphed({"x": torch.tensor([1.0, 1.0])}).backward()  # the next micro-batch of the same step
    assert weight.grad.tolist() == [41, 401]
    weight.grad = bias.grad = None
    graphed({"x": torch.ones(2)}).backward()
    assert pointers == [weight.grad.data_ptr(), bias.grad.data_ptr()]  # type: ignore[attr-defined]


def test_parameters_stand_aside_and_come_back() -> None:
    _, model = tiny()
    real = [p for p in model.parameters() if p.requires_grad]
    with aliased_parameters(model) as doubles:
        assert [d.data_ptr() for d in doubles] == [p.data_ptr() for p in real]
        assert not any(a is b for a, b in zip(doubles, real, strict=True))
        assert all(a is b for a, b in zip(doubles, (p for p in model.parameters() if p.requires_grad), strict=True))
    assert all(a is b for a, b in zip(real, (p for p in model.parameters() if p.requires_grad), strict=True))


def test_two_parts_of_a_step_find_the_gradients_of_one() -> None:
    _, model = tiny("lora.dropout=0.1", layers=9)
    regions = Regions(model.get_base_model(), 32)
    regions.compile()
    names, trained = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    batch = {"input_ids": torch.arange(64).view(2, 32), "labels": torch.arange(64).view(2, 32)}
    two = split_backward(model, regions, trained)
    assert two is not None
    lowest = [name for name in names if ".layers.0." in name or ".layers.1." in name]
    assert [[names[place] for place in group] for group in two.groups] == [
        [name for name in names if name not in lowest], lowest,
    ]  # fmt: skip
    for passes in (two, split_backward_if_equal(model, regions, trained, batch)):
        assert len(passes.parts) == 2
        results = []
        for way in (passes, unsplit_backward(model, trained)):
            torch.manual_seed(0)
            results.append(way(batch))
        assert torch.equal(results[0][0], results[1][0])
        for actual, expected in zip(results[0][1], results[1][1], strict=True):
            torch.testing.assert_close(actual, expected)


def test_a_step_is_one_part_where_the_lowest_layers_are_reached_by_another_way() -> None:
    _, model = tiny(layers=9)
    base = model.get_base_model().model
    low: list[torch.Tensor] = []
    base.layers[0].register_forward_hook(lambda module, given, out: low.append(out))
    base.norm.register_forward_pre_hook(lambda module, given: (given[0] + low.pop(),))
    regions, trained = Regions(model.get_base_model(), 32), [p for p in model.parameters() if p.requires_grad]
    batch = {"input_ids": torch.arange(64).view(2, 32), "labels": torch.arange(64).view(2, 32)}
    assert split_backward(model, regions, trained) is not None
    assert len(split_backward_if_equal(model, regions, trained, batch).parts) == 1


def test_a_step_is_one_part_where_the_layer_at_the_cut_has_no_part_in_it() -> None:
    _, model = tiny(layers=9)
    regions, trained = Regions(model.get_base_model(), 32), [p for p in model.parameters() if p.requires_grad]
    regions.layers.insert(2, nn.Linear(1, 1))  # as one that sees images
    batch = {"input_ids": torch.arange(64).view(2, 32), "labels": torch.arange(64).view(2, 32)}
    assert split_backward(model, regions, trained) is not None
    assert len(split_backward_if_equal(model, regions, trained, batch).parts) == 1


def test_a_step_of_which_only_the_upper_layers_are_trained_is_one_part() -> None:
    _, model = tiny(layers=3)
    for parameter in model.get_base_model().model.layers[0].parameters():
        parameter.requires_grad = False
    trained = [p for p in model.parameters() if p.requires_grad]
    assert split_backward(model, Regions(model.get_base_model(), 32), trained) is None


def ragged(rows: int) -> TokenizedData:
    data = TokenizedData()
    for i in range(rows):
        length = 4 + 3 * (i % 5)
        ids = [(7 * i + k) % 300 for k in range(length)]
        data.add(Example(ids, [k >= length - 2 - i % 2 for k in range(length)]), 32)
    return data


def trained(folder: Path, kind: str, *overrides: str) -> SimpleNamespace:
    """Train the tiny model on 11 ragged rows, two epochs."""
    recipe, model = tiny("train.steps=null", "train.epochs=2", *overrides)
    run = RunDir(folder / kind)
    run.root.mkdir()
    observer = Observer(run, RankInfo()).start()
    counts = BatchCounts()
    options = training_arguments(recipe, folder / "out", torch.device("cpu"))
    steps = StepCallback(observer=observer, counts=counts, exclude_steps=0)
    callbacks: list[Any] = [steps]
    engine: Any = None
    collator = Collator(0, counts)
    if kind != "reference":
        collator = StaticCollator(0, counts, 2, 32)
        engine = (RecordedEngine if kind == "recorded" else FastEngine)(recipe, collator, observer)
        callbacks.insert(0, engine)
    trainer = ReferenceTrainer(
        model=model, args=options, train_dataset=ragged(11), data_collator=collator, callbacks=callbacks
    )
    trainer.train()
    observer.close()
    lines = list(JournalTail(run.rank_journal(0)).records())
    return SimpleNamespace(
        model=model,
        engine=engine,
        steps=[line for line in lines if isinstance(line, Step)],
        events=[line for line in lines if isinstance(line, Event)],
        phases=[line for line in lines if isinstance(line, PhaseChange)],
    )


@pytest.mark.parametrize("kind", ["compiled", "recorded"])
def test_a_compiled_training_is_the_reference_training(tmp_path: Path, kind: str) -> None:
    accumulate = "train.gradient_accumulation=3"  # 6 batches an epoch, the last one short
    fast, reference = trained(tmp_path, kind, accumulate), trained(tmp_path, "reference", accumulate)
    assert fast.engine.level == (Level.GRAPH if kind == "recorded" else Level.COMPILED)
    if kind == "recorded":
        assert fast.engine.replays == 1 + 12  # the recording, and each batch of two epochs
    assert len(fast.steps) == len(reference.steps) == 4
    for actual, expected in zip(fast.steps, reference.steps, strict=True):
        assert actual.loss == pytest.approx(expected.loss, rel=1e-5)
        assert actual.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert (actual.nonpad_tokens, actual.label_tokens) == (expected.nonpad_tokens, expected.label_tokens)
        assert actual.learning_rate == expected.learning_rate
        assert actual.tokens == 3 * 2 * 32  # what is computed
    for (name, actual), expected in zip(
        fast.model.state_dict().items(), reference.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7, msg=name)
    assert "forward" not in fast.model.get_base_model().__dict__


def test_compiling_is_a_phase_of_its_own_and_no_step_has_a_part_in_it(tmp_path: Path) -> None:
    fast = trained(tmp_path, "compiled")
    names = [phase.name for phase in fast.phases]
    assert names[0] == "compiling"
    assert names[-1] == "training"
    assert fast.phases[0].detail == "2 × LlamaDecoderLayer"
    begun = next(phase.at for phase in fast.phases if phase.name == "training")
    assert sum(step.duration_s for step in fast.steps) <= fast.steps[-1].ended_at - begun + 0.01
    (event,) = fast.events
    assert (event.kind, event.severity, event.rank) == ("compiled", "info", None)
    assert event.message.startswith("2 × LlamaDecoderLayer compiled in ")


def test_a_step_that_cannot_be_recorded_runs_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Any, compute: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\n\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(RecordedEngine, "_recorder", refused)
    fast = trained(tmp_path, "recorded")
    assert fast.engine.level == Level.COMPILED
    assert [step.step for step in fast.steps] == list(range(1, 13))
    (event,) = fast.events
    assert (event.kind, event.severity) == ("engine_fallback", "warning")
    assert event.message == (
        "the step is not a CUDA graph (rank 0: RuntimeError: operation not permitted when stream is capturing): "
        "its compiled layers run without one"
    )


def test_a_step_that_does_not_compile_is_the_reference_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(regions, "BACKEND", broken)
    fast, reference = trained(tmp_path, "compiled"), trained(tmp_path, "reference")
    assert fast.engine.level == Level.REFERENCE
    assert [step.loss for step in fast.steps] == [step.loss for step in reference.steps]
    assert [step.tokens for step in fast.steps] == [step.tokens for step in reference.steps]
    (event,) = fast.events
    assert (event.kind, event.severity) == ("engine_fallback", "warning")
    assert "no working compiler" in event.message
    assert event.message.endswith("the reference engine trains")


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_recorded_loss_goes_through_ddp(tmp_path: Path, alone_in_a_group: None) -> None:
    recipe, model = tiny()
    observer = Observer(RunDir(tmp_path), RankInfo())
    collator = StaticCollator(0, BatchCounts(), 2, 32)
    engine = RecordedEngine(recipe, collator, observer)
    wrapped = nn.parallel.DistributedDataParallel(model)
    reductions: list[int] = []
    wrapped.register_comm_hook(None, lambda state, bucket: reduced(bucket, reductions))
    batch = {**collator(list(ragged(2))), "num_items_in_batch": torch.tensor(5)}
    wrapped(**batch).loss.backward()
    real = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    engine.on_train_begin(SimpleNamespace(device=torch.device("cpu")), None, None, model=model)  # type: ignore[arg-type]
    assert engine.level == Level.GRAPH
    assert all(p.grad is None for p in model.parameters())  # nor did compiling reduce anything
    reductions.clear()
    wrapped(**batch).loss.backward()
    assert reductions
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, real[name], rtol=1e-4, atol=1e-8)


def reduced(bucket: Any, seen: list[int]) -> torch.futures.Future[torch.Tensor]:
    seen.append(bucket.buffer().numel())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def test_the_host_does_not_look_at_losses_and_copies_ahead() -> None:
    assert trainer_arguments(cuda=True)["accelerator_config"] == {"non_blocking": True}
    recipe = loading.load("tiny", ["train.engine=fast"])
    options = training_arguments(recipe, Path("out"), torch.device("cpu"))
    assert options.logging_nan_inf_filter is False
    assert options.accelerator_config.non_blocking is False
    assert options.ddp_broadcast_buffers is False
    reference = training_arguments(loading.load("tiny"), Path("out"), torch.device("cpu"))
    assert reference.logging_nan_inf_filter is True


def test_compiled_kernels_lie_in_the_home_for_this_user_alone(lorawatch_home: Path) -> None:
    environment = {"TRITON_CACHE_DIR": "/theirs"}
    compile_cache.set_up(1_000, environment)
    folder = lorawatch_home / "cache" / "inductor"
    assert environment == {
        "TRITON_CACHE_DIR": "/theirs",
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_written_leaves_torch_its_own_place(lorawatch_home: Path) -> None:
    lorawatch_home.write_text("a file")
    environment: dict[str, str] = {}
    compile_cache.set_up(1, environment)
    assert "TORCHINDUCTOR_CACHE_DIR" not in environment
