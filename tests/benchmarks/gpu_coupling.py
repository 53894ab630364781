"""Where the time of coupled ranks goes: one fast training over several GPUs whose couplings are taken off in turns.

    python tests/benchmarks/gpu_coupling.py [--ranks 2] [--steps 150] [--turns 2] [--set KEY=VALUE] [--cpu]

The published benchmark's 8B model with random weights. Stretches of so many steps, in one process a rank, in turns:
`coupled` as it trains; `count kept` without the exchange of the numbers of label tokens; `behind` with the gradients exchanged
behind the backward pass instead of during its end; `half` and `1 MB` with so much of them exchanged there; `flat` with them
brought together and an all-reduce of one number, so that ranks wait for each other and send nothing; `one number` with that
alone; `free` without it as well, so that no rank waits for another while the process group and its links are up. A line a
stretch and rank: median and mean step, of which up to the end of the backward pass, of the all-reduce behind it, and of the rest;
the GPU's clock, power and temperature. What `free` still lacks against ranks that never met (lorawatch --record … --separate) is
the price of the links being up; NCCL's own settings come from the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STRETCHES = ("coupled", "count kept", "behind", "half", "1 MB", "flat", "one number", "free")
SETTLE = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--stretches", default=",".join(STRETCHES))
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(given)
        return
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={given.ranks}",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", __file__, "--rank", *sys.argv[1:],
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        # Each rank writes to a file of its own: lines of several on one pipe get mixed up.
        environment = {"LORAWATCH_HOME": home, "HF_HUB_OFFLINE": "1", **os.environ, "RESULTS": home}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        files = sorted(Path(home).glob("rank-*.json"))
        lines = [line for file in files for line in json.loads(file.read_text())]
    if not lines:
        sys.exit(f"status {done.returncode}\n{done.stderr[-3000:]}")
    columns = (("median_ms", 10, 2), ("mean_ms", 8, 2), ("back_ms", 8, 2), ("reduce_ms", 10, 3), ("rest_ms", 8, 3),
               ("mhz", 6, 0), ("w", 7, 1), ("c", 4, 0))  # fmt: skip
    print(f"{'stretch':14} rank " + " ".join(f"{name:>{width}}" for name, width, _ in columns))
    for line in sorted(lines, key=lambda line: (line["number"], line["rank"])):
        cells = [
            f"{line[key]:>{width}.{digits}f}" if line.get(key) is not None else f"{'—':>{width}}"
            for key, width, digits in columns
        ]
        print(f"{line['stretch']:14} {line['rank']:>4} {' '.join(cells)}")
    for stretch in given.stretches.split(","):
        means = [line["mean_ms"] for line in lines if line["stretch"] == stretch]
        print(f"{stretch}: mean of all {statistics.mean(means):.2f} ms, of the slower rank "
              f"{statistics.mean(slower(lines, stretch)):.2f} ms")  # fmt: skip


def slower(lines: list[dict[str, Any]], stretch: str) -> list[float]:
    """Each turn's mean step of the rank that is slowest in it."""
    numbers = {line["number"] for line in lines if line["stretch"] == stretch}
    return [max(line["mean_ms"] for line in lines if line["number"] == number) for number in numbers]


def rank(given: argparse.Namespace) -> None:
    from lorawatch.training import compile_cache

    compile_cache.set_up(given.ranks)
    import torch
    from transformers import TrainerCallback, set_seed
    from transformers.utils import logging as transformers_logging

    from lorawatch.recipe import loading
    from lorawatch.run.directory import RunDir
    from lorawatch.run.journal import JournalTail
    from lorawatch.run.records import Step
    from lorawatch.training import fast_engine
    from lorawatch.training import model as models
    from lorawatch.training.batch_counts import BatchCounts
    from lorawatch.training.callback import StepCallback
    from lorawatch.training.data import build_training_data
    from lorawatch.training.observer import Observer
    from lorawatch.training.rank_info import RankInfo
    from lorawatch.training.reduction import FlatAllReduce
    from lorawatch.training.reference_trainer import ReferenceTrainer, training_arguments

    transformers_logging.set_verbosity_error()
    rank_info = RankInfo.from_environment()
    device = torch.device("cpu") if given.cpu else torch.device("cuda", rank_info.local_rank)
    if not given.cpu:
        torch.cuda.set_device(device)
    order = [stretch for _ in range(given.turns) for stretch in given.stretches.split(",")]
    total = SETTLE + given.steps * len(order)
    settings = [*given.set, f"train.steps={total}", "train.engine=fast", "model.weights=random"]
    recipe = loading.load("exxact-8b", [*settings, *(["model.name=tiny-llama"] if given.cpu else [])])
    edges: list[float] = []

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Takes couplings off and puts them on again, at the same steps on every rank."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            past = state.global_step - SETTLE
            if past > 0:
                mark()
            if past < 0 or past % given.steps or past // given.steps >= len(order):
                return
            if not given.cpu:
                torch.cuda.synchronize()
            edges.append(time.time())
            stretch = order[past // given.steps]
            trainer.accelerator.gather = gather if stretch in ("coupled", "behind") else kept
            if engine.averages_gradients:
                graphed = engine._graphed
                assert graphed is not None
                if not overlapped:
                    overlapped.append(graphed.all_reduce)
                meanwhile = overlapped[0] is not None and stretch in ("coupled", "count kept")
                graphed.all_reduce = overlapped[0] if meanwhile else None
                engine.all_reduce = marked((lambda: None) if meanwhile else instead.get(stretch, reduce))

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark()

    overlapped: list[Any] = []
    one = torch.zeros(1, device=device)

    marks: list[Any] = []

    def mark() -> None:
        if not given.cpu:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()

    def marked(work: Any) -> Any:
        def timed() -> None:
            mark()
            work()
            mark()

        return timed

    def wait() -> None:
        torch.distributed.all_reduce(one)

    def partly(share: Callable[[int], int]) -> Any:
        """The all-reduce with only so many of its numbers exchanged."""

        def reduced() -> None:
            exchange = torch.distributed.all_reduce
            torch.distributed.all_reduce = lambda pieces: exchange(pieces[: share(len(pieces))])
            try:
                reduce()
            finally:
                torch.distributed.all_reduce = exchange

        return reduced

    instead = {
        "half": partly(lambda numbers: numbers // 2), "1 MB": partly(lambda numbers: 1 << 18), "flat": partly(lambda numbers: 1),
        "one number": wait, "free": lambda: None,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        observer = Observer(run, rank_info).start()
        arguments = training_arguments(recipe, run.checkpoints, device)
        set_seed(0)
        plan = models.plan_model(recipe)
        data = build_training_data(recipe, None, plan.vocabulary, rank_info.model_world_size)
        model = models.load_model(plan, recipe, device)
        reduce = FlatAllReduce((p for p in model.parameters() if p.requires_grad), given.ranks)
        set_seed(0)
        counts = BatchCounts()
        collator = fast_engine.StaticCollator(0, counts, recipe.train.batch_size_per_gpu, recipe.data.sequence_length)
        engine = fast_engine.FastEngine(recipe, collator, observer)
        callbacks = [engine, StepCallback(observer=observer, counts=counts, facts=plan.facts), Turns()]
        trainer = ReferenceTrainer(
            model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=callbacks,
            fingerprint=data.fingerprint, engine=engine,
        )  # fmt: skip
        gather = trainer.accelerator.gather

        def kept(tensor: Any) -> Any:
            return tensor * given.ranks

        with Card(None if given.cpu else rank_info.local_rank) as card:
            trainer.train()
            if not given.cpu:
                torch.cuda.synchronize()
        edges.append(time.time())
        observer.close()
        steps = [line for line in JournalTail(run.rank_journal(rank_info.rank)).records() if isinstance(line, Step)]
    # Four marks a step: its begin, before and after the all-reduce, its end.
    measured = [marks[i : i + 4] for i in range(SETTLE, len(marks), 4)]
    lines = []
    for number, stretch in enumerate(order):
        begin, pieces = SETTLE + number * given.steps, dict[str, float]()
        durations = [1e3 * s.duration_s for s in steps if begin + 5 < s.step <= begin + given.steps]
        if not given.cpu:
            mine = measured[number * given.steps + 5 : (number + 1) * given.steps]
            for name, at in (("back_ms", 0), ("reduce_ms", 1), ("rest_ms", 2)):
                pieces[name] = statistics.mean(m[at].elapsed_time(m[at + 1]) for m in mine)
        line = {"stretch": stretch, "number": number, **pieces, "rank": rank_info.rank, "median_ms": statistics.median(durations),
                "mean_ms": statistics.mean(durations), **card.between(edges[number], edges[number + 1])}  # fmt: skip
        lines.append(line)
    (Path(os.environ["RESULTS"]) / f"rank-{rank_info.rank}.json").write_text(json.dumps(lines))
    os._exit(0)  # the process group's end waits for what nobody needs


class Card:
    """Samples one GPU's clock, power and temperature ten times a second, on a thread of its own."""

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._seen: list[tuple[float, float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Card:
        if self._index is not None:
            self._thread.start()
        return self

    def __exit__(self, *given: object) -> None:
        self._stop.set()
        if self._index is not None:
            self._thread.join()

    def _read(self) -> None:
        import pynvml as nvml

        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            while not self._stop.wait(0.1):
                self._seen.append((
                    time.time(), nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                    nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
                    nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                ))  # fmt: skip

    def between(self, start: float, end: float) -> dict[str, float | None]:
        inside = [s for s in self._seen if start + 1 <= s[0] <= end]
        return {
            name: statistics.mean(s[i] for s in inside) if inside else None
            for i, name in ((1, "mhz"), (2, "w"), (3, "c"))
        }


if __name__ == "__main__":
    main()
