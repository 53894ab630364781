"""Packed rows on one GPU: what the kernel's attention makes of logits and losses, and how much faster rows are trained.

    python tests/benchmarks/gpu_packing.py [--layers 8] [--length 512] [--batch 2] [--steps 60] [--dry]

The published benchmark's model with fewer layers and random weights, on rows as ragged as conversations; no network, less
than a minute on an H100. First logits of packed documents under BF16 autocast, by the variable-length kernel and by
transformers' mask, held against each document alone: the errors are those against FP32, and the last column says how many
times BF16's own they are. Then trainings: the fast engine's losses and gradient norms against the reference engine's on the
same packed batches (the first before any weight has changed), and tokens a second with and without packing, padding left
out. The last line says `ok`, or what is not as it must be. `--dry` runs a tiny model on the CPU: it shows that the script
works.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOGETHER = 6
"""First steps whose losses are compared."""
WARM_UP = 10
GIB = 2**30
COLUMNS = (
    ("training", "{:18}", "row"), ("level", "{:>9}", "level"), ("nonpad tok/s", "{:>12,.0f}", "nonpad_s"),
    ("tok/s", "{:>8,.0f}", "tok_s"), ("padding", "{:>8.1%}", "padding"), ("step ms", "{:>8.1f}", "step_ms"),
    ("loss 1", "{:>9.5f}", "loss"), ("norm 1", "{:>9.5f}", "norm"), ("reserved", "{:>9.2f}", "reserved_gib"),
    ("compile s", "{:>9.1f}", "compile_s"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["LORAWATCH_HOME"] = home
        from lorawatch.training import compile_cache

        compile_cache.set_up(1)
        import torch
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if not options.dry:
            print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
        wrong += attention(options)
        clear()
        wrong += trainings(options, Path(home))
    print(f"{time.monotonic() - began:.0f} s in all; {'; '.join(wrong) or 'ok'}", flush=True)


def recipe_of(options: argparse.Namespace, *overrides: str) -> Any:
    from lorawatch.recipe import loading

    shape = ["model.name=tiny-llama", "model.dtype=float32"] if options.dry else []
    return loading.load("exxact-8b", [
        "model.weights=random", f"data.sequence_length={options.length}", f"train.batch_size_per_gpu={options.batch}",
        f"train.steps={options.steps}", "train.schedule=constant", *shape, *overrides,
    ])  # fmt: skip


def model_from_files(recipe: Any, options: argparse.Namespace, device: Any) -> Any:
    from lorawatch.training import model as models

    plan = models.plan_model(recipe)
    if not options.dry:
        plan.config.num_hidden_layers = options.layers
    return models.load_model(plan, recipe, device)


def rows(options: argparse.Namespace, vocabulary: int) -> Any:
    """Rows as long as short conversations are, learned on their second half."""
    from lorawatch.training.data import TokenizedData
    from lorawatch.training.tokenization import Example

    draw = random.Random(0)
    data = TokenizedData()
    for _ in range(60 if options.dry else 2000):
        length = max(4, min(int(draw.lognormvariate(4.6, 0.7)), options.length))
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        data.add(Example(ids, [i >= length // 2 for i in range(length)]), options.length)
    return data


def attention(options: argparse.Namespace) -> list[str]:
    """Logits of packed documents against each alone."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from lorawatch.training.attention import check_documents_separate, document_attention, variable_length_kernel
    from lorawatch.training.batch_counts import BatchCounts
    from lorawatch.training.data import PackedData
    from lorawatch.training.fast_engine import StaticCollator
    from lorawatch.training.regions import PACKED

    device = torch.device("cpu" if options.dry else "cuda")
    model = model_from_files(recipe_of(options), options, device)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    check_documents_separate(model)
    model.eval()
    data = PackedData(rows(options, model.config.vocab_size), options.length)
    print(f"{data.summary(options.batch, to_longest=False)}; up to "
          f"{data.packing.max_documents(options.batch)} documents in a batch "
          f"of {options.batch}, the longest {data.packing.longest}", flush=True)  # fmt: skip
    blocks = range(min(options.batch, len(data)))
    documents = [data.rows[row]["input_ids"] for block in blocks for row in data.packing.block(block)]
    batch = StaticCollator(0, BatchCounts(), options.batch + 1, options.length, data.packing)([data[b] for b in blocks])
    batch = {name: value.to(device) for name, value in batch.items() if name != "labels"}

    def apart() -> list[Any]:
        return [model(input_ids=ids.unsqueeze(0).to(device)).logits[0].float().cpu() for ids in documents]

    def packed() -> list[Any]:
        logits = model(**batch).logits.float()
        if not bool(torch.isfinite(logits).all()):
            wrong.append("logits of padding are not finite")
        parts = []
        for row, block in zip(logits, blocks, strict=False):
            sizes = [data.rows.lengths[d] for d in data.packing.block(block)]
            parts += [part.cpu() for part in row[: sum(sizes)].split(sizes)]
        return parts

    wrong: list[str] = []
    kind = "cpu" if options.dry else "cuda"
    found: dict[str, list[Any]] = {}
    with torch.no_grad():
        with torch.autocast(kind, torch.bfloat16):
            found["each alone"] = apart()
            found["mask"] = packed()
            ALL_ATTENTION_FUNCTIONS.register(PACKED, document_attention(data.packing.longest, device))
            model.get_base_model().set_attn_implementation(PACKED)
            found["kernel"] = packed()
        model.get_base_model().set_attn_implementation("sdpa")
        model.float()
        exact = apart()
    kernel = variable_length_kernel(data.packing.longest, device)
    if kernel is None and not options.dry:
        wrong.append("there is no variable-length kernel")
    largest = max(float(e.abs().max()) for e in exact)
    print(f"{'logits':18} {'worst error':>12} {'mean error':>12} {'of the largest':>15} {'× BF16':>7}", flush=True)
    rounding = 0.0
    for name, logits in found.items():
        errors = torch.cat([(a - b).abs().flatten() for a, b in zip(logits, exact, strict=True)])
        worst, mean = float(errors.max()), float(errors.mean())
        rounding = rounding or mean
        print(f"{name:18} {worst:12.5f} {mean:12.6f} {worst / largest:15.3%} {mean / rounding:7.2f}", flush=True)
        if not mean < 1.2 * rounding:
            wrong.append(f"logits by {name} are off by {mean / rounding:.2f} times BF16's rounding")
    return wrong


def trainings(options: argparse.Namespace, home: Path) -> list[str]:
    """Losses and speed of the engines, packed and not."""
    wrong: list[str] = []
    results = []
    print(" ".join(_width(form).format(title) for title, form, _ in COLUMNS), flush=True)
    for row in ("reference packed", "fast packed", "fast", "reference"):
        result = measure(row, options, home / row.replace(" ", "-"))
        results.append(result)
        cells = [
            _width(form).format("—") if result.get(key) is None else form.format(result[key])
            for _, form, key in COLUMNS
        ]
        print(" ".join(cells), flush=True)
        if result.get("says"):
            print(f"{'':18} {result['says']}", flush=True)
    reference, fast, plain, _ = results
    drift = [a / b - 1 for a, b in zip(fast["losses"], reference["losses"], strict=True)]
    norms = [a / b - 1 for a, b in zip(fast["norms"], reference["norms"], strict=True)]
    print(f"fast against reference on the same packed batches: loss {drift[0]:+.4%} at step 1, {max(map(abs, drift)):.4%} at "
          f"most in {len(drift)}; gradient norm {norms[0]:+.3%}, {max(map(abs, norms)):.3%}", flush=True)  # fmt: skip
    if not (abs(drift[0]) < 1e-3 and abs(norms[0]) < 2e-2 and max(map(abs, drift)) < 5e-3):
        wrong.append("the fast engine's losses are not the reference engine's")
    if not options.dry and fast["level"] != "GRAPH":
        wrong.append("the packed step is no CUDA graph")
    ratio = fast["nonpad_s"] / plain["nonpad_s"]
    print(
        f"packing makes the fast engine {ratio:.2f} × as fast: {fast['nonpad_s']:,.0f} tok/s that are no padding",
        flush=True,
    )
    out = Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu_packing.json"
    out.write_text(json.dumps(results))
    return wrong


def measure(row: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A training as lorawatch.training.trainer.train does it on a rank."""
    import torch
    from transformers import PrinterCallback, set_seed

    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Event, Step
    from lorawatch.training import fast_engine
    from lorawatch.training.batch_counts import BatchCounts
    from lorawatch.training.callback import StepCallback
    from lorawatch.training.collator import Collator
    from lorawatch.training.data import PackedData
    from lorawatch.training.observer import Observer
    from lorawatch.training.rank_info import RankInfo
    from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

    compiled, packs = row.startswith("fast"), row.endswith("packed")
    steps = options.steps if compiled else max(WARM_UP + 10, options.steps // 3)
    recipe = recipe_of(options, f"train.engine={'fast' if compiled else 'reference'}", f"train.steps={steps}")
    device = torch.device("cpu" if options.dry else "cuda", 0 if not options.dry else None)
    if not options.dry:
        torch.cuda.reset_peak_memory_stats()
    run = RunDir(folder)
    observer = Observer(run, RankInfo()).start()
    arguments = training_arguments(recipe, run.checkpoints, device)
    model = model_from_files(recipe, options, device)
    data = rows(options, model.config.vocab_size)
    packing = None
    if packs:
        data = PackedData(data, options.length)
        packing = data.packing
    set_seed(0)
    counts = BatchCounts()
    watching = StepCallback(observer=observer, counts=counts, exclude_steps=0)
    collator: Any = Collator(0, counts, packing)
    callbacks: list[Any] = [watching]
    engine: Any = None
    if compiled:
        collator = fast_engine.StaticCollator(0, counts, options.batch, options.length, packing)
        engine = fast_engine.FastEngine(recipe, collator, observer)
        callbacks.insert(0, engine)
    trainer = ReferenceTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=callbacks, engine=engine
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    observer.close()
    journal = list(JournalTail(run.rank_journal(0)).records())
    lines = [line for line in journal if isinstance(line, Step)]
    measured = lines[WARM_UP:]
    windows = [
        measured[i : i + math.ceil(len(measured) / 3)] for i in range(0, len(measured), math.ceil(len(measured) / 3))
    ]
    spans = [sum(s.duration_s for s in window) for window in windows]
    tokens = sum(s.tokens or 0 for s in measured)
    result: dict[str, Any] = {
        "row": row, "level": engine.level.name if engine else None, "compile_s": engine.compile_s if engine else None,
        "losses": [s.loss for s in lines[:TOGETHER]], "norms": [s.grad_norm for s in lines[:TOGETHER]],
        "loss": lines[0].loss, "norm": lines[0].grad_norm, "step_ms": 1e3 * statistics.median(s.duration_s for s in measured),
        "padding": 1 - sum(s.nonpad_tokens or 0 for s in measured) / tokens,
        "says": "; ".join(line.message for line in journal if isinstance(line, Event)),
    }  # fmt: skip
    for name, key in (("nonpad_tokens", "nonpad_s"), ("tokens", "tok_s")):
        rates = [sum(getattr(s, name) for s in w) / span for w, span in zip(windows, spans, strict=True)]
        result[key] = statistics.median(rates)
    if not options.dry:
        result["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    del trainer, model, engine, callbacks, collator, watching
    clear()
    return result


def clear() -> None:
    """Give the GPU's memory back before the next model comes."""
    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _width(form: str) -> str:
    """A column's format for text."""
    digits: Iterator[str] = itertools.takewhile(lambda c: c in "<>0123456789", form.removeprefix("{:"))
    return "{:" + "".join(digits) + "}"


if __name__ == "__main__":
    main()
