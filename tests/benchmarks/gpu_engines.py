"""The training engines beside each other on one GPU: speed, power, memory, compile time; 24 GiB or more, no network.

    python tests/benchmarks/gpu_engines.py [--rows reference,fast,...] [--seconds 330] [--batch 2] [--length 512] [--dry]

The published benchmark's 8B model with random weights, each engine in a process of its own: some warm-up steps, then
three windows whose edges wait for the GPU. tok/s is the windows' median, power the energy counter's difference over all
three, MFU against an 8192³ BF16 matrix product measured here. Rows are printed as they come, the most important first;
a row for which no time is left is left out. A JSON line a row goes to $OUT/gpu_engines.jsonl. `--dry` runs a tiny model
on the CPU: it measures nothing, it shows that the script works.

`peer` is a script as users write it, without lorawatch: peft on a transformers model, transformers' Trainer with bf16,
logging every ten steps. `reference` and `fast` are lorawatch's engines, `fp8` is fast with its frozen weights in FP8;
`again`: with the compile cache that the first filled. `no-graph` is fast without its CUDA graph, `flash` fast with
FlashAttention 2, `whole` the whole model compiled at once with torch's own CUDA graphs. At the end: ratios with their bounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from child import result_of, tell

ROWS = ("peer", "reference", "fast", "fp8", "fast again", "fp8 again", "no-graph")
# What a row takes at least, in seconds; without that much left it is not begun.
LEAST_S = {
    "peer": 25, "reference": 25, "fast": 45, "fp8": 45, "fast again": 25, "fp8 again": 25, "no-graph": 25, "flash": 40,
    "whole": 75,
}  # fmt: skip
EAGER = ("peer", "reference")
# Against the peer at (batch, length): tok/s and tok/J at least so many times.
BOUNDS = {
    (2, 512): {"fast": (2.5, 1.5), "fp8": (3.2, 2.0)},
    (8, 512): {"fast": (1.4, None), "fp8": (1.8, None)},
}
WARM_UP, WINDOWS = 12, 3
GIB = 2**30
COLUMNS = (
    ("engine", "{:12}", "row"), ("tok/s", "{:>8,.0f}", "tok_s"), ("(windows)", "{:>20}", "windows"),
    ("W", "{:>6.0f}", "power_w"), ("tok/J", "{:>6.2f}", "tok_j"), ("MFU %", "{:>6.1f}", "mfu_pct"),
    ("reserved", "{:>9.2f}", "reserved_gib"), ("allocated", "{:>9.2f}", "allocated_gib"),
    ("compile s", "{:>9.1f}", "compile_s"), ("1st step s", "{:>10.1f}", "first_step_s"),
    ("syncs/step", "{:>10.1f}", "syncs_a_step"), ("loss", "{:>9.5f}", "loss"), ("mean drift", "{:>10}", "drift"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seconds", type=float, default=330)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--window", type=float, default=4.0, help="seconds, about")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tell(measure(options.one, options))
        return
    deadline = time.monotonic() + options.seconds
    out = Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu_engines.jsonl"
    out.unlink(missing_ok=True)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as home:
        for number, row in enumerate(options.rows.split(",")):
            left = deadline - time.monotonic()
            if left < LEAST_S[row]:
                print(f"{row}: left out, {left:.0f} s are left", flush=True)
                continue
            result = child(row, options, home, left)
            results[row] = result
            complete(result, results)
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            if number == 0:
                print(result.get("device", ""), flush=True)
                print(" ".join(_width(form).format(title) for title, form, _ in COLUMNS), flush=True)
            show(result)
    if not options.dry:
        judge(results, (options.batch, options.length))
    print(f"written to {out}; {options.seconds - (deadline - time.monotonic()):.0f} s in all", flush=True)


def child(row: str, options: argparse.Namespace, home: str, seconds: float) -> dict[str, Any]:
    """Measure one row in a process of its own, ended when its time is over."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "LORAWATCH_HOME": home,
        "STARTED_AT": str(time.time()),
    }  # fmt: skip
    command = [sys.executable, __file__, "--one", row, "--window", str(options.window)]
    command += ["--batch", str(options.batch), "--length", str(options.length)] + ["--dry"] * options.dry
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    return {"row": row, **result_of(process, seconds)}


def complete(result: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Add what needs other rows: MFU, and how the losses differ from the reference's step by step."""
    peak = next(iter(results.values())).get("matmul_tflops")
    if peak and result.get("tok_s") and not result["row"].startswith("fp8"):  # its products are of two precisions
        result["mfu_pct"] = 100 * result["flops_per_token"] * result["tok_s"] / (peak * 1e12)
    losses = results.get("reference", {}).get("losses", ())
    if result["row"] != "reference" and losses and result.get("losses"):
        relative = [a / b - 1 for a, b in zip(result["losses"], losses, strict=False)]
        result["drift"] = f"{100 * statistics.mean(relative):+.4f}%"
        result["worst_drift"] = max(map(abs, relative))
        result["last_drift"] = relative[-1]


def judge(results: dict[str, dict[str, Any]], shape: tuple[int, int]) -> None:
    """Each ratio beside its bound."""

    def line(what: str, ratio: float | None, bound: float, *, least: bool = True) -> None:
        if ratio is not None:
            met = ratio >= bound if least else ratio <= bound
            print(f"{what}: {ratio:.3f} ({'≥' if least else '≤'} {bound}) {'met' if met else 'MISSED'}", flush=True)

    def over(a: str, b: str, key: str) -> float | None:
        x, y = results.get(a, {}).get(key), results.get(b, {}).get(key)
        return x / y if x and y else None

    for row, (speed, energy) in BOUNDS.get(shape, {}).items():
        for base in EAGER:
            line(f"{row} / {base}, tok/s", over(row, base, "tok_s"), speed)
            if energy is not None:
                line(f"{row} / {base}, tok/J", over(row, base, "tok_j"), energy)
    line("reference / peer, tok/s", over("reference", "peer", "tok_s"), 0.99)
    for row in ("fast", "fp8"):
        line(f"{row} / reference, reserved memory", over(row, "reference", "reserved_gib"), 1.05, least=False)
        if drift := results.get(row, {}).get("last_drift"):
            line(f"{row} against reference, last loss, %", 100 * abs(drift), 1.0 if row == "fp8" else 0.5, least=False)
    if mfu := results.get("fast", {}).get("mfu_pct"):
        line("fast, MFU %", mfu, 65)
    for row, bound in (("reference", 20), ("fast again", 40), ("fp8 again", 40)):
        if seconds := results.get(row, {}).get("first_step_s"):
            line(f"{row}, start to first step, s", seconds, bound, least=False)


def show(result: dict[str, Any]) -> None:
    if "error" in result:
        print(f"{result['row']:12} FAILED {result['error']}", flush=True)
        return
    cells = []
    for _, form, key in COLUMNS:
        value = result.get(key)
        cells.append(_width(form).format("—") if value is None else form.format(value))
    print(" ".join(cells), flush=True)
    for key in ("engine_says", "sync_places"):
        if result.get(key):
            print(f"{'':12} {key.replace('_', ' ')}: {result[key]}", flush=True)
    if result["row"] not in EAGER and result.get("level") != "GRAPH" and result.get("reserved_gib"):
        print(result["stderr"], flush=True)


def _width(form: str) -> str:
    """The column's format for text."""
    return "{:" + form.strip("{:}").split(".")[0].rstrip(",").rstrip(",.") + "}"


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: what lorawatch.training.trainer.train does on a rank, with windows."""
    began = float(os.environ["STARTED_AT"])
    from lorawatch.training import compile_cache

    compile_cache.set_up(1)
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.utils import logging as transformers_logging

    from lorawatch.recipe import loading
    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Event, Step
    from lorawatch.training import fast_engine
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
    result: dict[str, Any] = {"torch": torch.__version__}
    if cuda:
        torch.cuda.set_device(device)
        result["device"] = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    if cuda and row in EAGER:
        result["matmul_tflops"] = matmul_tflops()
        result["device"] += f", 8192³ BF16 product {result['matmul_tflops']:.0f} TFLOP/s"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if row == "flash":
        torch.backends.cuda.enable_cudnn_sdp(False)
    # About `window` seconds each, by what is known of the engines on an H100.
    step_s = (0.15 if row in EAGER else 0.06) * options.batch * options.length / 1024
    each = 4 if options.dry else max(8, round(options.window / step_s))
    shape = ["model.name=tiny-llama"] if options.dry else []
    recipe = loading.load("exxact-8b", [
        "model.weights=random", f"train.steps={WARM_UP + WINDOWS * each}", f"train.batch_size_per_gpu={options.batch}",
        f"data.sequence_length={options.length}", f"train.engine={'reference' if row in EAGER else 'fast'}",
        f"model.quantization={'fp8' if row.startswith('fp8') else 'none'}", *shape,
    ])  # fmt: skip

    class Windows(TrainerCallback):  # type: ignore[misc]
        """Marks the windows' edges; between two warm-up steps it listens for calls that wait for the GPU."""

        def __init__(self) -> None:
            self.edges: list[float] = []
            self.first_s: float | None = None
            self.syncs: list[str] = []
            self._listening: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            if step == 1:
                wait()
                self.first_s = time.time() - began
            if cuda and step == 5:
                self._listening = warnings.catch_warnings(record=True)
                self._heard = self._listening.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            if cuda and step == 9:
                torch.cuda.set_sync_debug_mode("default")
                self._listening.__exit__(None, None, None)
                heard = [w for w in self._heard if "synchronizing" in str(w.message)]
                self.syncs = [f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in heard]
            if step >= WARM_UP and (step - WARM_UP) % each == 0:
                wait()
                self.edges.append(time.time())

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    class WithoutGraph(fast_engine.FastEngine):
        def _may_be_recorded(self) -> bool:
            return False

    class Whole(WithoutGraph):
        """The whole model compiled at once, its loss alone as output, under torch's own CUDA graphs."""

        def _build(self, *given: Any) -> Any:
            forward, engine = self._forward, self

            def loss(**inputs: Any) -> Any:
                return forward(**inputs).loss  # type: ignore[misc]

            class WholeModel(fast_engine.Regions):  # type: ignore[name-defined,misc]
                def compile(self) -> None:
                    self._norms = []
                    layers, self.layers = self.layers, []
                    super().compile()
                    self.layers = layers
                    compiled = torch.compile(loss, mode="reduce-overhead" if cuda else None, dynamic=False)
                    engine._forward = lambda **inputs: SimpleNamespace(loss=compiled(**inputs))

            fast_engine.Regions = WholeModel  # type: ignore[attr-defined]
            return super()._build(*given)

    energy = Energy(cuda)
    windows = Windows()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        rank_info = RankInfo()
        observer = Observer(run, rank_info).start()
        arguments = training_arguments(recipe, run.checkpoints, device)
        set_seed(0)
        plan = models.plan_model(recipe)
        data = build_training_data(recipe, None, plan.vocabulary, 1)
        model: Any
        if row == "peer":
            with device:
                base = AutoModelForCausalLM.from_config(plan.config, dtype=torch.bfloat16)
            lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            model = get_peft_model(base, lora)
            arguments = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=options.batch, max_steps=recipe.train.steps or 0,
                learning_rate=2e-4, bf16=cuda, use_cpu=not cuda, logging_steps=10, report_to="none", save_strategy="no",
            )  # fmt: skip
            peer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[windows])
            set_seed(0)
            peer.train()
            energy.stop()
            observer.close()
            return result | figures(windows, energy, each, options, plan.facts.flops_per_token, cuda)
        model = models.load_model(plan, recipe, device)
        set_seed(0)
        counts = BatchCounts()
        steps = StepCallback(observer=observer, counts=counts, facts=plan.facts)
        collator: Any = Collator(0, counts)
        engine: Any = None
        callbacks: list[Any] = [steps, windows]
        if row not in EAGER:
            kind = {"no-graph": WithoutGraph, "whole": Whole}.get(row, fast_engine.FastEngine)
            collator = fast_engine.StaticCollator(0, counts, options.batch, options.length)
            engine = kind(recipe, collator, observer)
            callbacks.insert(0, engine)
        trainer = ReferenceTrainer(
            model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=callbacks,
            fingerprint=data.fingerprint,
        )  # fmt: skip
        trainer.train()
        energy.stop()
        observer.close()
        journal = list(JournalTail(run.rank_journal(0)).records())
    lines = [line for line in journal if isinstance(line, Step)]
    result["losses"] = [line.loss for line in lines]
    result["loss"], result["grad_norm"] = lines[-1].loss, lines[-1].grad_norm
    result["step_1_s"] = lines[0].duration_s
    result |= figures(windows, energy, each, options, plan.facts.flops_per_token, cuda)
    if engine is not None:
        result["compile_s"], result["level"] = engine.compile_s, engine.level.name
        result["engine_says"] = "; ".join(line.message for line in journal if isinstance(line, Event))
    return result


def figures(
    windows: Any, energy: Energy, each: int, options: argparse.Namespace, flops: float | None, cuda: bool
) -> dict[str, Any]:
    """What the windows say."""
    import torch

    tokens, edges = each * options.batch * options.length, windows.edges
    rates = [tokens / (b - a) for a, b in itertools.pairwise(edges)]
    result = {
        "tok_s": statistics.median(rates), "rates": rates, "windows": f"({min(rates):,.0f}–{max(rates):,.0f})",
        "flops_per_token": flops, "first_step_s": windows.first_s, "each": each,
        "syncs_a_step": len(windows.syncs) / 4 if cuda else None, "sync_places": ", ".join(sorted(set(windows.syncs))),
    }  # fmt: skip
    if cuda:
        result["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        result["allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
    if joules := energy.between(edges[0], edges[-1]):
        result["power_w"] = joules / (edges[-1] - edges[0])
        result["tok_j"] = WINDOWS * tokens / joules
    return result


def matmul_tflops() -> float:
    """Rate of an 8192³ BF16 matrix product: 2·8192³ operations over the median time."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(40):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / statistics.median(times[10:]) / 1e12


class Energy:
    """Reads the GPU's energy counter, which moves ten times a second, on a thread of its own."""

    def __init__(self, cuda: bool) -> None:
        self._seen: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        if cuda:
            self._thread.start()

    def _read(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            by_uuid = visible.startswith(("GPU-", "MIG-"))
            handle = (
                pynvml.nvmlDeviceGetHandleByUUID(visible)
                if by_uuid
                else pynvml.nvmlDeviceGetHandleByIndex(int(visible))
            )
            while not self._stop.wait(0.03):
                joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
                if not self._seen or joules != self._seen[-1][1]:
                    self._seen.append((time.time(), joules))
        except Exception as error:
            print(f"no energy counter: {error}", file=sys.stderr)

    def stop(self) -> None:
        time.sleep(0.3)  # the counter's next move, past the last edge
        self._stop.set()

    def between(self, start: float, end: float) -> float | None:
        """Joules between two moments, interpolated between the counter's moves; None where it did not span them."""
        a, b = self._at(start), self._at(end)
        return None if a is None or b is None else b - a

    def _at(self, moment: float) -> float | None:
        for (t0, e0), (t1, e1) in itertools.pairwise(self._seen):
            if t0 <= moment <= t1:
                return e0 + (e1 - e0) * (moment - t0) / (t1 - t0)
        return None


if __name__ == "__main__":
    main()
