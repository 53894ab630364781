"""Run directories with known content, for the tests of the history."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.run.directory import Gpu, RunDir, RunInfo, RunState
from lorawatch.run.journal import JournalWriter
from lorawatch.run.records import (
    Evaluation,
    Event,
    GpuSample,
    HostSample,
    PhaseChange,
    RankStarted,
    Record,
    Severity,
    Step,
)
from lorawatch.storage.connection import reading

T0 = 1_790_000_000.0
DATA = Path(__file__).parent / "data"


def make_run(name: str = "t", *, ranks: int = 2, gpus: list[Gpu] | None = None, **more: Any) -> RunDir:
    """A run directory without journals."""
    return RunDir.create(
        RunInfo(
            run_id="",
            name=name,
            created_at=time.time(),
            host="h",
            user="u",
            world_size=ranks,
            device="cuda" if gpus else "cpu",
            gpus=gpus or [],
            **more,
        )
    )


def write(path: Path, *records: Record) -> None:
    """Append records as their writers do."""
    writer = JournalWriter(path)
    for record in records:
        writer.append(record)
    assert writer.flush()
    writer.close()


def step(number: int, rank: int = 0, **more: Any) -> Step:
    """A step of 0.5 s and 1,000 tokens; number n ends n half seconds after T0."""
    values: dict[str, Any] = {
        "attempt": 0,
        "rank": rank,
        "step": number,
        "ended_at": T0 + 0.5 * number,
        "duration_s": 0.5,
        "tokens": 1000,
        "nonpad_tokens": 900,
        "label_tokens": 500,
        "loss": 2.0,
        "phase": "warmup" if number == 1 else "train",
    }
    return Step(**{**values, **more})


def evaluation(number: int, loss: float | None = 2.0, rank: int = 0, **more: Any) -> Evaluation:
    """An evaluation of 5 s after a step, at whose end it ends if nothing else is said."""
    values: dict[str, Any] = {"attempt": 0, "ended_at": T0 + 0.5 * number, "duration_s": 5.0, "label_tokens": 700}
    return Evaluation(rank=rank, step=number, loss=loss, **{**values, **more})


def an_evaluated_run(losses: Sequence[float | None] = (2.5, 2.0, 2.25, 2.25), *, pause_s: float = 5.0) -> RunDir:
    """Two ranks, 40 steps, an evaluation of so many seconds after every 10, in which the GPUs take 600 W instead of 300."""
    cards = [Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku="NVIDIA H100 80GB HBM3", used=True) for i in (0, 1)]
    recipe = {"model": {"name": "m"}, "train": {"batch_size_per_gpu": 2, "eval_every": 10}}
    run = make_run("evaluated", gpus=cards, recipe=recipe)
    begins = [T0 + 0.5 * (n - 1) + pause_s * ((n - 1) // 10) for n in range(1, 41)]
    ends = [begin + 0.5 for begin in begins]
    for rank in (0, 1):
        started = RankStarted(at=T0 - 1, attempt=0, rank=rank, local_rank=rank, world_size=2, host="h", pid=1,
                              device="cuda", gpu_uuid=f"GPU-{rank}", steps_total=40)  # fmt: skip
        lines: list[Record] = [started]
        for n, ended in enumerate(ends, 1):
            lines.append(step(n, rank, ended_at=ended))
            if n % 10 == 0:
                over = ended + pause_s
                lines.append(PhaseChange(at=ended, attempt=0, rank=rank, name="evaluating", detail=f"after step {n}"))
                if rank == 0:
                    lines.append(evaluation(n, losses[n // 10 - 1], ended_at=over, duration_s=pause_s))
                lines.append(PhaseChange(at=over, attempt=0, rank=rank, name="training"))
        write(run.rank_journal(rank), *lines)
    samples, joules = [], 0.0
    for tick in range(10 * round(20 + 4 * pause_s + 2)):
        at = T0 + 0.1 * tick
        busy = any(begin <= at < ended for begin, ended in zip(begins, ends, strict=True))
        samples += [GpuSample(sampled_at=at, gpu_uuid=card.gpu_uuid, power_w=300.0 if busy else 600.0, energy_j=joules)
                    for card in cards]  # fmt: skip
        joules += 30.0 if busy else 60.0
    write(run.host_journal("h"), *samples)
    end(run)
    return run


def end(run: RunDir, state: str = "completed", **more: Any) -> None:
    """Write down that a run has ended."""
    run.write_state(RunState(state=state, started_at=T0, ended_at=T0 + 60, step=10, **more))  # type: ignore[arg-type]


def a_whole_run(name: str = "whole", *, gpus: int = 2, state: str = "completed", steps: int = 40) -> RunDir:
    """A run with every kind of line: two GPUs at 5 Hz and 300 W, one more GPU that it does not use at 50 W."""
    cards = [
        Gpu(host="h", gpu_index=i, gpu_uuid=f"GPU-{i}", sku="NVIDIA H100 80GB HBM3", used=i < gpus)
        for i in range(gpus + 1)
    ]
    recipe = {"model": {"name": "m"}, "train": {"batch_size_per_gpu": 2}}
    run = make_run(name, ranks=gpus, gpus=cards, recipe=recipe, tags=["a"], torch_version="2.13")
    for rank in range(gpus):
        write(
            run.rank_journal(rank),
            RankStarted(
                at=T0, attempt=0, rank=rank, local_rank=rank, world_size=gpus, host="h", pid=1, device="cuda",
                gpu_uuid=f"GPU-{rank}", flops_per_token=30e9, dtype="bfloat16",
            ),
            *(step(n, rank, duration_s=0.5 - 0.01 * rank, data_wait_s=0.001) for n in range(1, steps + 1)),
            PhaseChange(at=T0 + 30, attempt=0, rank=rank, name="saving"),
        )  # fmt: skip
    samples: list[Record] = []
    for tick in range(int(5 * (0.5 * steps + 4))):
        at = T0 - 1 + 0.2 * tick
        for card in cards:
            watts = 300.0 if card.used else 50.0
            samples.append(
                GpuSample(
                    sampled_at=at, gpu_uuid=card.gpu_uuid, power_w=watts, memory_used_bytes=20 * 2**30,
                    event_reasons=4 if tick % 2 else 0, energy_j=1e6 + watts * 0.2 * tick if tick % 5 == 0 else None,
                    temperature_c=60.0,
                )
            )  # fmt: skip
        samples.append(HostSample(sampled_at=at, host="h", cpu_pct=10.0))
    write(run.host_journal("h"), *samples)
    severity: Severity = "info" if state == "completed" else "error"
    write(
        run.events_journal,
        Event(at=T0, kind="started", message="started"),
        Event(at=T0 + 60, kind="ended", severity=severity, message=state),
    )
    end(run, state)
    return run


def rows(query: str) -> list[tuple[Any, ...]]:
    """Ask the test's history."""
    with reading() as connection:
        return list(connection.execute(query).fetchall())


def one_row(query: str) -> dict[str, Any]:
    """A query's only row, by column."""
    with reading() as connection:
        cursor = connection.execute(query)
        names = [c[0] for c in cursor.description]
        (row,) = cursor.fetchall()
        return dict(zip(names, row, strict=True))


def h100_trace(name: str) -> dict[str, Any]:
    """A series of real NVML readings; its `rows` are [unix s, W, instant W, average W, mJ, bytes, %, °C, MHz, reasons]."""
    series = json.loads((DATA / "h100_llama8b_lora_samples.json").read_text())
    return next(s for s in series if s["name"] == name)


def h100_names() -> list[str]:
    return [s["name"] for s in json.loads((DATA / "h100_llama8b_lora_samples.json").read_text())]


def many_lines(count: int, seed: int = 0) -> list[bytes]:
    """Step lines with distinct steps, as bytes."""
    source = random.Random(seed)
    encode = msgspec.json.Encoder().encode
    return [encode(step(n, loss=source.random())) + b"\n" for n in range(1, count + 1)]
