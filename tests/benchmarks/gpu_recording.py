"""Recording on against off on one GPU: interleaved pairs of the same bare Trainer, one model, one process.

Off: transformers' Trainer alone. On: the same with StepCallback, beside a whole `lorawatch --record` that samples the GPU
at 5 Hz and ingests. The figure is the ratio of tok/s over the measured steps of each half.

    python tests/benchmarks/gpu_recording.py [--pairs 10] [--steps 40] [--batch 2] [--model NAME]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import psutil
import torch
from report import Report
from transformers import Trainer, TrainerCallback, TrainingArguments

from lorawatch import StepCallback
from lorawatch import recipe as recipes
from lorawatch.training import model as models
from lorawatch.training.counts import BatchCounts
from lorawatch.training.data import Collator, build_data


class _Clock(TrainerCallback):
    """Both halves are timed by the same clock: the host's, with one synchronisation at each end of the window."""

    def __init__(self, skip: int, last: int) -> None:
        self.skip, self.last, self.began, self.seconds = skip, last, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.skip, self.last):
            torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == self.skip:
                self.began = now
            else:
                self.seconds = now - self.began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--model", default=None)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    overrides = ["model.weights=random", f"train.steps={options.steps}", f"train.batch_size_per_gpu={options.batch}"]
    if options.model:
        overrides.append(f"model.name={options.model}")
    recipe = recipes.load("exxact-8b", overrides)
    device = torch.device("cuda", 0)
    plan = models.plan_model(recipe)
    model = models.load_model(plan, recipe, device)
    data = build_data(recipe, None, plan.vocabulary, 1)
    skip = 5
    tokens = (options.steps - skip) * recipe.train.batch_size_per_gpu * recipe.data.sequence_length

    def half(callbacks: list[TrainerCallback], folder: str) -> float:
        clock = _Clock(skip, options.steps)
        arguments = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=recipe.train.batch_size_per_gpu,
            bf16=True, logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=Collator(0, BatchCounts()),
            callbacks=[*callbacks, clock],
        ).train()
        return tokens / clock.seconds

    report = Report(
        f"recording on against off, {options.pairs} interleaved pairs of {options.steps} steps, batch {options.batch} × 512"
    )
    with tempfile.TemporaryDirectory() as folder:
        half([], folder)  # the first run of a process is slower; it belongs to neither side
        home = Path(folder) / "home"
        recorder = subprocess.Popen(
            [sys.executable, "-m", "lorawatch", "--record", "--", "sleep", "3600"],
            env={**os.environ, "LORAWATCH_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(home.glob("runs/*/state.json")):
            time.sleep(0.05)
        time.sleep(2.0)
        (run,) = (home / "runs").iterdir()
        ratios, rates = [], []
        for pair in range(options.pairs):
            found: dict[bool, float] = {}
            for on in (False, True) if pair % 2 else (True, False):
                # the recorder is frozen while it is off: pairs lie seconds apart, so that a host that drifts hits both
                recorder.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
                if on:
                    os.environ["LORAWATCH_RUN_DIR"] = str(run)
                else:
                    os.environ.pop("LORAWATCH_RUN_DIR", None)
                found[on] = half([StepCallback()] if on else [], folder)
            ratios.append(found[True] / found[False])
            rates.append(found[False])
            print(f"  pair {pair}: off {found[False]:,.0f} tok/s, on {found[True]:,.0f} tok/s", flush=True)
        recorder.send_signal(signal.SIGCONT)
        # Not stopped but killed: it would end the rank it watches, which is this process.
        for process in (*psutil.Process(recorder.pid).children(), recorder):
            process.kill()
        recorder.wait(60)
    spread = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    report.figure("off", median(rates), "tok/s")
    report.figure("on ÷ off, mean of the pairs", mean(ratios), "×", least=0.995)
    report.figure("median of the pairs", median(ratios), "×")
    report.figure("standard error of the mean", spread, "×")
    report.close()


if __name__ == "__main__":
    main()
