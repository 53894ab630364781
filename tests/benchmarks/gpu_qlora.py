"""NF4 base weights (QLoRA) on one GPU of 80 GB with random weights: does it load, train and fit as estimated; no network.

    python tests/benchmarks/gpu_qlora.py [--rows 8b,8b-fast,70b] [--seconds 90] [--layers 80] [--dry]

Needs bitsandbytes. Each row trains in a process of its own: `8b` and `8b-fast` are exxact-8b with adapters on all linear
layers in both engines, `70b` is llama-70b-qlora. Every step has the same rows, so that the loss must fall. Prints a line a
row: seconds to load, tok/s (median of the steps after the third), peak memory beside the estimate, first and last loss.
A JSON line a row goes to $OUT/gpu_qlora.jsonl. Ends with 1 where a row fails, its loss does not fall, or its reserved memory
is off by more than 5%. `--layers` makes 70b smaller; `--dry` runs a tiny model on the CPU and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from child import result_of, tell

ROWS = ("8b", "8b-fast", "70b")
LEAST_S = {"8b": 15, "8b-fast": 30, "70b": 35}
"""What a row takes at least, in seconds; without that much left it is not begun."""
STEPS, WARM_UP, ALLOWED = {"8b": 20, "8b-fast": 20, "70b": 9}, 3, 0.05
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--layers", type=int, default=80, help="of the 70B model")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tell(measure(options.one, options))
        return
    deadline = time.monotonic() + options.seconds
    out = Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu_qlora.jsonl"
    out.unlink(missing_ok=True)
    good = True
    with tempfile.TemporaryDirectory() as home:
        for row in options.rows.split(","):
            left = deadline - time.monotonic()
            if left < LEAST_S[row] and not options.dry:
                print(f"{row}: left out, {left:.0f} s are left", flush=True)
                good = False
                continue
            result = child(row, options, home, left)
            good &= show(row, result)
            with out.open("a") as file:
                file.write(json.dumps({"row": row, **result}) + "\n")
    print(f"written to {out}; {options.seconds - (deadline - time.monotonic()):.0f} s in all", flush=True)
    sys.exit(0 if good else 1)


def child(row: str, options: argparse.Namespace, home: str, seconds: float) -> dict[str, Any]:
    """Measure one row in a process of its own, ended when its time is over."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "LORAWATCH_HOME": home}
    command = [sys.executable, __file__, "--one", row, "--layers", str(options.layers)] + ["--dry"] * options.dry
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    return result_of(process, seconds)


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: what lorawatch.training.trainer.train does on a rank."""
    began = time.monotonic()
    from lorawatch.training import compile_cache

    compile_cache.set_up(1)
    import torch
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    from lorawatch.analysis.memory import estimate
    from lorawatch.models import memory
    from lorawatch.recipe import loading
    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Event, Step
    from lorawatch.training import fast_engine, quantization
    from lorawatch.training import model as models
    from lorawatch.training.batch_counts import BatchCounts
    from lorawatch.training.callback import StepCallback
    from lorawatch.training.collator import Collator
    from lorawatch.training.data import build_training_data
    from lorawatch.training.observer import Observer
    from lorawatch.training.rank_info import RankInfo
    from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    cuda = not options.dry
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    with tempfile.TemporaryDirectory() as folder:
        name = shaped(row, options, Path(folder))
        overrides = ["model.weights=random", f"train.steps={STEPS[row]}", "train.learning_rate=1e-3", *name]
        if row != "70b":
            engine = "fast" if row == "8b-fast" else "reference"
            overrides += ["model.quantization=nf4", "lora.targets=all-linear", f"train.engine={engine}"]
        recipe = loading.load("llama-70b-qlora" if row == "70b" else "exxact-8b", overrides)
        needed = estimate(memory.workload(recipe))
        run = RunDir(Path(folder))
        observer = Observer(run, RankInfo()).start()
        arguments = training_arguments(recipe, run.checkpoints, device)
        set_seed(0)
        plan = models.plan_model(recipe)
        quantization.check(recipe, device)
        models.check_memory(plan, device)
        imported = time.monotonic()
        model = models.load_model(plan, recipe, device)
        if cuda:
            torch.cuda.synchronize()
        loaded = time.monotonic()
        result: dict[str, Any] = {
            "device": torch.cuda.get_device_name(device) if cuda else "cpu", "torch": torch.__version__,
            "import_s": imported - began, "load_s": loaded - imported, "base_bytes": plan.base_bytes,
            "estimated_allocated": needed.allocated_bytes, "estimated_reserved": needed.reserved_bytes,
            "estimated_weights": needed.weights + needed.adapters, "moment": needed.moment,
        }  # fmt: skip
        if cuda:
            result["loaded_allocated"] = torch.cuda.memory_allocated(device)
            result["loading_peak"] = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        # The same rows in every step, since random ones teach nothing.
        rows = build_training_data(recipe, None, plan.vocabulary, 1)
        batch = recipe.train.batch_size_per_gpu
        data = [rows[i % batch] for i in range(batch * STEPS[row])]
        counts = BatchCounts()
        collator: Any = Collator(0, counts)
        callbacks: list[Any] = [StepCallback(observer=observer, counts=counts, facts=plan.facts)]
        if recipe.train.engine == "fast":
            collator = fast_engine.StaticCollator(0, counts, batch, recipe.data.sequence_length)
            callbacks.insert(0, fast_engine.FastEngine(recipe, collator, observer))
        trainer = ReferenceTrainer(
            model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=callbacks
        )
        trainer.train()
        observer.close()
        journal = list(JournalTail(run.rank_journal(0)).records())
    steps = [line for line in journal if isinstance(line, Step)]
    result["losses"] = [s.loss for s in steps]
    rates = [s.tokens / s.duration_s for s in steps[WARM_UP:] if s.tokens and s.duration_s]
    result["tok_s"] = statistics.median(rates) if rates else None
    result["says"] = [line.message for line in journal if isinstance(line, Event)]
    if cuda:
        result["allocated"] = torch.cuda.max_memory_allocated(device)
        result["reserved"] = torch.cuda.max_memory_reserved(device)
    return result


def shaped(row: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """The override that names the model: none for the recipe's own, else a folder with a config or the tiny shape."""
    if options.dry:
        return ["model.name=tiny-llama", "data.sequence_length=32"]
    if row != "70b" or options.layers == 80:
        return []
    from lorawatch.training import model as models

    config, _ = models._shape("meta-llama/Llama-3.3-70B-Instruct")
    config.num_hidden_layers = options.layers
    config.save_pretrained(folder / "shape")
    return [f"model.name={folder / 'shape'}"]


def show(row: str, result: dict[str, Any]) -> bool:
    """Print a row; whether it is as it should be."""
    if "error" in result:
        print(f"{row}: FAILED {result['error']}", flush=True)
        return False
    losses = [loss for loss in result["losses"] if loss is not None]
    finite = len(losses) == len(result["losses"]) > 0 and all(abs(loss) < 1e9 for loss in losses)
    falling = finite and losses[-1] < losses[0]
    print(
        f"{row}: {result['device']}, torch {result['torch']}: loaded in {result['load_s']:.1f} s (imports "
        f"{result['import_s']:.1f} s), {result['tok_s'] or 0:,.0f} tok/s, loss {losses[0]:.4f} → {losses[-1]:.4f} "
        f"{'falling' if falling else 'NOT FALLING'}",
        flush=True,
    )
    near = True
    for what, seen, thought in (
        ("loaded", "loaded_allocated", "estimated_weights"), ("peak allocated", "allocated", "estimated_allocated"),
        ("peak reserved", "reserved", "estimated_reserved"),
    ):  # fmt: skip
        if seen in result:
            off = result[thought] / result[seen] - 1
            # The fast engine is only said to need no more.
            wrong = what == "peak reserved" and (off < -ALLOWED or (off > ALLOWED and row != "8b-fast"))
            near &= not wrong
            print(
                f"  {what:15} {result[seen] / GIB:7.2f} GiB, estimated {result[thought] / GIB:7.2f} ({off:+.1%})"
                f"{'  OFF' if wrong else ''}",
                flush=True,
            )
    if "loading_peak" in result:
        print(f"  while loading   {result['loading_peak'] / GIB:7.2f} GiB at most", flush=True)
    for words in result["says"]:
        print(f"  says: {words}", flush=True)
    if not (falling and near):
        print(result["stderr"][-1500:], flush=True)
    return falling and near


if __name__ == "__main__":
    main()
