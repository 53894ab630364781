"""What measuring costs on a GPU, each figure beside its bound; needs one CUDA device of 24 GiB or more, no network.

    python tests/benchmarks/gpu_training.py [--layers 32] [--steps 20] [--pairs 5]

Prints JSON lines: (a) a loop measured under torch.cuda.set_sync_debug_mode("error"), its durations against the wall
time; (b) the callback's cost a step on the main thread; (c) the reference engine against the same Trainer without
lorawatch, interleaved, on the benchmark model with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, set_seed
from transformers.utils import logging as transformers_logging

from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import Step
from lorawatch.training import model as models
from lorawatch.training.batch_counts import BatchCounts
from lorawatch.training.callback import StepCallback
from lorawatch.training.collator import Collator
from lorawatch.training.data import build_training_data
from lorawatch.training.facts import gpu_identity
from lorawatch.training.meter import StepMeter
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

DEVICE = torch.device("cuda", 0)


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def no_synchronisation() -> None:
    """A loop with the meter polled from a side thread, every synchronising call an error; losses checked afterwards."""
    meter = StepMeter(DEVICE)
    layers = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, device=DEVICE) for _ in range(8)])
    x = torch.randn(4096, 4096, device=DEVICE)
    labels = torch.randint(-100, -98, (4, 512), device=DEVICE)
    readings: list[Any] = []
    rank_info = SimpleNamespace(rank=0, world_size=1, attempt=0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        observer = Observer(run, rank_info)  # type: ignore[arg-type]
        observer.watch(lambda: readings.extend(meter.poll()))
        observer.start()
        layers(x).sum().backward()
        torch.cuda.synchronize()
        wanted: list[torch.Tensor] = []
        torch.cuda.set_sync_debug_mode("error")
        try:
            meter.mark()
            began = time.perf_counter()
            for step in range(1, 41):
                loss = layers(x).square().mean()
                loss.backward()
                count = (labels[:, 1:] != -100).sum()
                meter.add_batch(2048, nonpad=2048, labels=count, loss_sum=loss.detach() * count)
                meter.set_grad_norm(torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0))
                wanted.append(loss.detach())
                meter.end_step(step, 1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
        ended = time.time()
        time.sleep(0.2)
        observer.close()
    readings += meter.drain()
    assert [r.step for r in readings] == list(range(1, 41)), len(readings)
    for reading, loss in zip(readings, wanted, strict=True):
        assert abs(reading.loss - loss.item()) <= 1e-5 * abs(loss.item()), (reading, loss.item())
        assert reading.grad_norm is not None
    total = sum(r.duration_s for r in readings)
    say(
        check="no synchronisation", passed=True, steps=len(readings), durations_over_wall=round(total / wall, 5),
        last_ended_at_error_ms=round((readings[-1].ended_at - ended) * 1e3, 2), gpu=gpu_identity(DEVICE),
    )  # fmt: skip


def cost_of_a_step() -> None:
    """Main-thread time of the callback's work in a step: hook, loss, norm, events, the stop agreement."""
    ids = torch.zeros((2, 512), dtype=torch.long, device=DEVICE)
    inputs = {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(1022, device=DEVICE)}
    outputs = {"loss": torch.tensor(1.5, device=DEVICE)}
    for counted in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            observer = Observer(RunDir(Path(folder)), RankInfo()).start()
            counts = BatchCounts()
            callback = StepCallback(observer=observer, counts=counts if counted else None)
            state = SimpleNamespace(global_step=0, max_steps=10_000)
            control = SimpleNamespace(should_evaluate=False, should_save=False)
            scheduler = SimpleNamespace(get_last_lr=lambda: [1e-3])
            arguments: Any = SimpleNamespace(device=DEVICE)
            callback.on_train_begin(arguments, state, control, lr_scheduler=scheduler)
            module = torch.nn.Identity()
            norm = torch.tensor(0.5, device=DEVICE)
            costs = []
            for step in range(1, 1001):
                counts.put((2, 512), 1024, 1022)
                began = time.perf_counter_ns()
                callback._after_forward(module, (), inputs, outputs)
                callback._meter.set_grad_norm(norm)  # type: ignore[union-attr]
                callback.on_pre_optimizer_step(arguments, state, control)
                state.global_step = step
                callback.on_step_end(arguments, state, control)
                costs.append((time.perf_counter_ns() - began) / 1e3)
                time.sleep(0.002)
            callback.close()
            observer.close()
        costs = sorted(costs[50:])
        say(
            check="callback's cost", counts="collator" if counted else "device",
            median_us=round(costs[len(costs) // 2], 1),
            p99_us=round(costs[int(len(costs) * 0.99)], 1), bound_us=200, passed=costs[len(costs) // 2] <= 200,
        )  # fmt: skip


def against_bare_trainer(layers: int, steps: int, pairs: int) -> None:
    """The same Trainer, model and data with and without lorawatch's callback, one after the other."""
    recipe = loading.load("exxact-8b", ["model.weights=random", f"train.steps={steps}"])
    plan = models.plan_model(recipe)
    plan.config.num_hidden_layers = layers
    models.check_memory(plan, DEVICE)
    began = time.perf_counter()
    model = models.load_model(plan, recipe, DEVICE)
    torch.cuda.synchronize()
    rope = model.base_model.model.model.rotary_emb.inv_freq
    assert rope.dtype == torch.float32
    assert rope[0] == 1.0
    say(
        check="build", seconds=round(time.perf_counter() - began, 2), parameters=plan.facts.parameters,
        flops_per_token=plan.facts.flops_per_token, allocated_gib=round(torch.cuda.memory_allocated() / 2**30, 2),
    )  # fmt: skip
    data = build_training_data(recipe, None, plan.vocabulary, 1)

    def timed(make: Callable[[Path], tuple[Trainer, Callable[[], list[Step]]]]) -> tuple[float, list[Step]]:
        with tempfile.TemporaryDirectory() as folder:
            set_seed(0)
            trainer, finish = make(Path(folder))
            marks: list[float] = []
            after = trainer.callback_handler.on_step_end

            def on_step_end(*args: Any) -> Any:
                torch.cuda.synchronize() if len(marks) in (0, steps - 1) else None
                marks.append(time.perf_counter())
                return after(*args)

            trainer.callback_handler.on_step_end = on_step_end
            trainer.train()
            recorded = finish()
        tokens = (steps - 1) * recipe.train.batch_size_per_gpu * recipe.data.sequence_length
        return tokens / (marks[-1] - marks[0]), recorded

    def bare(folder: Path) -> tuple[Trainer, Callable[[], list[Step]]]:
        arguments = training_arguments(recipe, folder, DEVICE)
        collator = Collator(0, BatchCounts())
        return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator), list

    def ours(folder: Path) -> tuple[Trainer, Callable[[], list[Step]]]:
        run = RunDir(folder)
        observer, counts = Observer(run, RankInfo()).start(), BatchCounts()
        callback = StepCallback(observer=observer, counts=counts, facts=plan.facts)
        trainer = ReferenceTrainer(
            model=model, args=training_arguments(recipe, folder, DEVICE), train_dataset=data,
            data_collator=Collator(0, counts), callbacks=[callback],
        )  # fmt: skip

        def finish() -> list[Step]:
            observer.close()
            return [line for line in JournalTail(run.rank_journal(0)).records() if isinstance(line, Step)]

        return trainer, finish

    timed(bare)  # the first steps warm the allocator and the kernels
    ratios, rates, recorded_rates = [], [], []
    for pair in range(pairs):
        order = (bare, ours) if pair % 2 else (ours, bare)
        result = {make.__name__: timed(make) for make in order}
        rate, journal = result["ours"]
        assert [s.step for s in journal] == list(range(1, steps + 1))
        measured = [s for s in journal if s.phase == "train"]
        own = sum(s.tokens or 0 for s in measured) / sum(s.duration_s for s in measured)
        ratios.append(rate / result["bare"][0])
        rates.append(rate)
        recorded_rates.append(own)
        say(pair=pair, bare_tok_s=round(result["bare"][0]), ours_tok_s=round(rate), journal_tok_s=round(own),
            ratio=round(ratios[-1], 4), loss=measured[-1].loss, grad_norm=measured[-1].grad_norm,
            data_wait_ms=round((measured[-1].data_wait_s or 0) * 1e3, 2),
            peak_gib=round((measured[-1].memory_allocated_bytes or 0) / 2**30, 2))  # fmt: skip
    say(
        check="reference engine against the bare Trainer", median_ratio=round(statistics.median(ratios), 4), bound=0.99,
        passed=statistics.median(ratios) >= 0.99, tok_s=round(statistics.median(rates)),
        journal_over_wall=round(statistics.median(recorded_rates) / statistics.median(rates), 4),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.cuda.set_device(DEVICE)
    no_synchronisation()
    cost_of_a_step()
    against_bare_trainer(options.layers, options.steps, options.pairs)


if __name__ == "__main__":
    main()
