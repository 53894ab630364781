"""The published experiment on this machine's GPUs, and what stands around it: the one script of real scaling.

    python tests/benchmarks/gpu_scaling.py [--parts sweep,allreduce,recording,faults,extrapolate] [--counts 1,2,4,8]
        [--engines reference,fast] [--repeat 3] [--seconds 530] [--cpu] [--set KEY=VALUE …]

* sweep: each engine at every count, coupled and separate, in turns; `lorawatch compare` over it; the efficiency bounds, and
  beside them what explains a miss: rank by rank step times, data wait, clocks, power caps.
* allreduce: what averaging one step's gradients takes, by DDP and in one piece.
* recording: tok/s recorded and watched with a pane a GPU (and eight of a stub driver beside fewer), against neither.
* faults: a rank killed, stopped, out of memory.
* extrapolate: an epoch's time from the runs at fewer GPUs against the measured one.

Parts are done in that order, within the seconds: one that has no time left is left out or cut short, and says so. No
network (random weights). LORAWATCH_HOME keeps runs and compiled kernels where it is set; a later call with `extrapolate`
alone finds the sweeps there. With OUT set, each engine's sweep is left there as an archive: its runs without adapters, and
the history. `--cpu` does all of it with ranks on the CPU, which share its cores: nothing scales there, and no bound
holds. NVLink multicast is left as the machine has it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gpu_allreduce
import gpu_faults
import gpu_recording
from report import Report
from scaling_words import (
    EFFICIENCY_PCT,
    EPOCH_TIME_PCT,
    RankFigures,
    extrapolations,
    loss_words,
    pace_words,
    rank_lines,
    turn_by_turn_pct,
)

from lorawatch.comparing.comparison import compare
from lorawatch.comparing.configuration import Configuration
from lorawatch.comparing.gather import gather
from lorawatch.comparing.rows import Row
from lorawatch.errors import LorawatchError
from lorawatch.run.directory import RunDir
from lorawatch.storage.connection import reading
from lorawatch.storage.snapshot import snapshot
from lorawatch.system import home as paths

PROGRAM = gpu_recording.PROGRAM
PARTS = ("sweep", "allreduce", "recording", "faults", "extrapolate")
STEPS = {"reference": 60, "fast": 150}
"""As published; the fast engine's last a third as long, and more of them narrow the interval."""
TOKENS = 50_000_000
HALF_STEPS, MOST_PAIRS = 60, 10
PANES = 8
"""Of the bound; where there are fewer GPUs, so many of a stub driver are watched beside them."""
LEAVE_OUT = ("adapter", "checkpoints", "control", "stacks")
MOST_BYTES = 15 << 20
RANKS = """
    WITH runs_of AS (
        SELECT run_id, s.coupling, s.world_size AS ranks FROM runs JOIN run_summary AS s USING (run_id)
        WHERE list_contains(tags, ?) AND state = 'completed'
    ), spans AS (
        SELECT run_id, ranks, coupling, rank, any_value(gpu_uuid) AS gpu_uuid, median(duration_s) AS p50,
               quantile_cont(duration_s, 0.95) AS p95, sum(data_wait_s) / sum(duration_s) AS wait,
               min(ended_at) AS began, max(ended_at) AS ended
        FROM steps JOIN runs_of USING (run_id) WHERE phase = 'train' GROUP BY ALL
    ), gpu_means AS (
        SELECT s.run_id, s.rank, avg(g.power_w) AS power, avg(g.sm_clock_mhz) AS clock,
               avg((g.event_reasons & 4 <> 0)::INT) AS capped
        FROM spans AS s JOIN gpu_samples AS g
            ON g.run_id = s.run_id AND g.gpu_uuid = s.gpu_uuid AND g.sampled_at BETWEEN s.began AND s.ended
        GROUP BY ALL
    )
    SELECT ranks, coupling, rank, avg(p50), avg(p95), avg(wait), avg(power), avg(clock), avg(capped)
    FROM spans LEFT JOIN gpu_means USING (run_id, rank) GROUP BY ALL ORDER BY ALL
"""


@dataclass
class Plan:
    """What is to be done, and until when."""

    counts: list[int]
    engines: list[str]
    repeat: int
    cpu: bool
    settings: list[str]
    deadline: float

    def left_s(self) -> float:
        return self.deadline - time.monotonic()


def tag(engine: str) -> str:
    return f"scaling-{engine}"


def sweep(plan: Plan, engine: str, report: Report) -> None:
    """Record one engine's sweep and tell what came of it."""
    began = time.monotonic()
    recipe = ["tiny"] if plan.cpu else ["exxact-8b", "--set", "model.weights=random"]
    separate = ["--separate"] if max(plan.counts) > 1 else []
    log = out_folder() / f"sweep-{engine}.log"
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [*PROGRAM, "--record", *recipe, "--set", f"train.steps={STEPS[engine]}", "--set", f"train.engine={engine}",
             *plan.settings, "--sweep", ",".join(map(str, plan.counts)), *separate, "--repeat", str(plan.repeat),
             "--tag", tag(engine)],
            stdout=said, stderr=said, cwd=tempfile.gettempdir(), start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(max(plan.left_s() - 20, 1))
        except subprocess.TimeoutExpired:
            print(
                f"  no time is left for the rest of this sweep: ended at {time.monotonic() - began:.0f} s", flush=True
            )
            interrupted(process)
    print(f"  {engine}: {time.monotonic() - began:.0f} s, exit status {process.returncode}, log {log}", flush=True)
    if process.returncode:
        print(log.read_text(errors="replace")[-1500:], flush=True)
    judge_sweep(plan, engine, report)
    keep(engine)


def judge_sweep(plan: Plan, engine: str, report: Report) -> None:
    """The comparison in words, the bounds, and what explains them."""
    for form in ("table", "markdown"):
        told = subprocess.run(
            [*PROGRAM, "compare", "--tag", tag(engine), "--no-published", "--format", form],
            capture_output=True, text=True, check=False, cwd=tempfile.gettempdir(),
        )  # fmt: skip
        text = told.stdout if form == "table" else first_table(told.stdout)
        print(text, told.stderr[-500:], flush=True)
    ranks = rank_figures(engine)
    for line in rank_lines(ranks):
        print(f"  {line}", flush=True)
    for row in rows(engine):
        found = row.configuration
        if found.count == 1 or found.coupling != "ddp" or row.efficiency_pct is None:
            continue
        bound = None if plan.cpu or engine != "fast" else EFFICIENCY_PCT.get(found.count)
        name = f"{engine}: efficiency of {found.count} × {found.short_sku}"
        report.figure(name, row.efficiency_pct.value, "%", least=bound, ci95=row.efficiency_pct.ci95)
        turns = turn_by_turn_pct(rates(engine, 1, "ddp"), rates(engine, found.count, "ddp"), found.count)
        if turns is not None:
            report.figure("  turn by turn", turns.value, "%", ci95=turns.ci95)
        if bound is not None and (
            row.efficiency_pct.low is None or row.efficiency_pct.low < bound <= row.efficiency_pct.value
        ):
            print("       the value reaches the bound, its interval does not: more repeats would tell", flush=True)
        for words in (loss_words(row), pace_words(ranks, found.count)):
            print(f"       {words}" if words else "", flush=True)
    if plan.cpu:
        print(
            f"  ranks share {len(os.sched_getaffinity(0))} cores: this shows that the script works, not how GPUs scale",
            flush=True,
        )


def first_table(markdown: str) -> str:
    """The scaling table, without the ladder that the other format has shown already."""
    return next((block for block in markdown.split("\n\n") if block.startswith("|")), markdown)


def rows(engine: str) -> tuple[Row, ...]:
    """The sweep as Compare has it; empty without one."""
    try:
        found = gather(tag=tag(engine), with_published=False)
    except LorawatchError as error:
        print(f"  {error.message}", flush=True)
        return ()
    return compare(found.configurations).rows


def rates(engine: str, count: int, coupling: str) -> list[float]:
    """tok/s of a configuration's runs, in the order in which they ran."""
    query = """SELECT s.tok_s FROM run_summary AS s JOIN runs USING (run_id)
        WHERE list_contains(tags, ?) AND state = 'completed' AND s.world_size = ? AND s.coupling = ? ORDER BY run_id"""
    with reading() as connection:
        return [rate for (rate,) in connection.execute(query, [tag(engine), count, coupling]).fetchall() if rate]


def rank_figures(engine: str) -> list[RankFigures]:
    """Each rank of each configuration, over the repeats."""
    with reading() as connection:
        return [RankFigures(*row) for row in connection.execute(RANKS, [tag(engine)]).fetchall()]


def all_reduce(plan: Plan, report: Report) -> None:
    ranks = max(plan.counts)
    if ranks == 1:
        print("  one rank has nobody to average with", flush=True)
        return
    step_s = next((f.p50_s for engine in ("fast", "reference") for f in rank_figures(engine) if f.ranks == 1), None)
    adapter = next(paths.runs_folder().glob("*/adapter/adapter_model.safetensors"), None)
    if paths.runs_folder().is_dir() and adapter is None and plan.cpu:
        print("  no adapter of a run: the gradients of an 8B Llama's rank 16", flush=True)
    try:
        result = gpu_allreduce.measure(ranks, cpu=plan.cpu, adapter=adapter, timeout_s=max(plan.left_s(), 1))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        report.figure("the all-reduce could not be timed", 1, "", most=0)
        print(f"  {error}", flush=True)
        return
    print("\n".join(f"  {line}" for line in gpu_allreduce.words(result, step_s)), flush=True)


def recording(plan: Plan, report: Report) -> None:
    ranks, engine = max(plan.counts), plan.engines[-1]
    known = next((f.p50_s for f in rank_figures(engine) if f.ranks == ranks and f.coupling == "ddp"), None)
    step_s = known or (0.02 if plan.cpu else {"fast": 0.06, "reference": 0.2}[engine])
    # Importing, loading, compiling: from the sweep's cache, or into an empty one.
    start_s = 25 if plan.cpu else 50 if known else 75
    pair_s = 2 * (HALF_STEPS + gpu_recording.recording_on_off.SETTLE) * step_s
    pairs = min(MOST_PAIRS, int((plan.left_s() - start_s) / pair_s))
    if pairs < 2:
        print(f"  left out: {plan.left_s():.0f} s are left", flush=True)
        return
    panes = 0 if plan.cpu or ranks >= PANES else PANES
    if panes:
        print(f"  beside {ranks} real GPUs a recorder and panes of {panes} of a stub driver", flush=True)
    try:
        result = gpu_recording.measure(
            ranks, engine=engine, cpu=plan.cpu, pairs=pairs, steps=HALF_STEPS, timeout_s=max(plan.left_s(), 1),
            panes=panes, settings=plan.settings,
        )  # fmt: skip
    except (RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as error:
        report.figure("the recording could not be timed", 1, "", most=0)
        print(f"  {error}", flush=True)
        return
    recipe = RunDir.find(result["run_id"]).info().recipe or {}
    tokens = HALF_STEPS * ranks * recipe["train"]["batch_size_per_gpu"] * recipe["data"]["sequence_length"]
    gpu_recording.tell(report, result, tokens, bound=None if plan.cpu else 0.995)


def extrapolate(plan: Plan, report: Report) -> None:
    checked = False
    for engine in plan.engines:
        coupled: list[Configuration] = [r.configuration for r in rows(engine) if r.configuration.coupling == "ddp"]
        if not coupled:
            continue
        found, refused = extrapolations({c.count: c.tok_s for c in coupled}, coupled[0].tokens_per_step)
        for one in found:
            hours = [TOKENS / rate.value / 3600 for rate in (one.predicted, one.measured)]
            name = f"{engine}: epoch time on {one.gpus} from {', '.join(map(str, one.fitted_to))}, off by"
            report.figure(name, abs(one.epoch_time_off_pct), "%", most=None if plan.cpu else EPOCH_TIME_PCT)
            print(f"       50M tokens: extrapolated {hours[0]:.4f} h, measured {hours[1]:.4f} h", flush=True)
        for why in refused:
            print(f"  {engine}: not extrapolated: {why}", flush=True)
        checked = checked or bool(found)
        if plan.cpu and found:
            print(
                "       on one CPU the ranks share its cores, which the step-time model does not cover: Compare refuses it",
                flush=True,
            )
    if not checked:
        published(report)


def published(report: Report) -> None:
    """The same model held against published tables, where this machine has too few GPUs to check it."""
    families: dict[str, dict[int, Configuration]] = {}
    for found in gather(with_published=True).configurations:
        if found.provenance == "published" and found.coupling == "ddp":
            families.setdefault(found.family, {})[found.count] = found
    for family in families.values():
        like = family[min(family)]
        fitted, _ = extrapolations({n: c.tok_s for n, c in family.items()}, like.tokens_per_step)
        for one in fitted:
            name = f"published: epoch time on {one.gpus} × {like.short_sku} from {', '.join(map(str, one.fitted_to))}, off by"
            report.figure(name, abs(one.epoch_time_off_pct), "%", most=EPOCH_TIME_PCT)


def keep(engine: str) -> None:
    """Leave the sweep in OUT as an archive that fits what comes back from a lent machine."""
    folder = out_folder()
    if "OUT" not in os.environ:
        return
    with reading() as connection:
        query = "SELECT run_id FROM runs WHERE list_contains(tags, ?) ORDER BY run_id"
        ids = [i for (i,) in connection.execute(query, [tag(engine)]).fetchall()]
    with tempfile.TemporaryDirectory() as name:
        history = Path(name) / "history.duckdb"
        snapshot(history)
        file = folder / f"sweep-{engine}.tgz"
        with tarfile.open(file, "w:gz") as archive:
            archive.add(history, "history.duckdb")
            for run_id in ids:
                archive.add(paths.runs_folder() / run_id, f"runs/{run_id}", filter=slim)
    size = file.stat().st_size
    print(f"  {file}: {len(ids)} runs and the history, {size / 1e6:.1f} MB", flush=True)
    if size > MOST_BYTES:
        print("  that is more than comes back: without the history", flush=True)
        with tarfile.open(file, "w:gz") as archive:
            for run_id in ids:
                archive.add(paths.runs_folder() / run_id, f"runs/{run_id}", filter=slim)


def slim(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A run's file, unless it is one of those that test data needs no copy of."""
    parts = member.name.split("/")
    return None if len(parts) > 2 and parts[2] in LEAVE_OUT else member


def interrupted(process: subprocess.Popen[bytes]) -> None:
    """End a sweep as its user would: the first ctrl-c stops at a step, the second at once."""
    for patience in (20, 20):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()


def out_folder() -> Path:
    return Path(os.environ.get("OUT") or tempfile.gettempdir())


def gpu_count() -> int:
    return len(gpu_faults.vram() or [])


def listed(text: str, known: Sequence[str]) -> list[str]:
    words = [w for w in text.split(",") if w]
    if not words or not set(words) <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: of {', '.join(known)}")
    return words


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=lambda t: listed(t, PARTS), default=list(PARTS))
    parser.add_argument("--engines", type=lambda t: listed(t, tuple(STEPS)), default=None)
    parser.add_argument("--counts", default=None, help="1,2,4,… (default: up to all GPUs; 1,2 on the CPU)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    there = 2 if given.cpu else gpu_count()
    if not there:
        sys.exit("no GPU: --cpu does it with ranks on the CPU")
    counts = sorted(
        {int(c) for c in given.counts.split(",")} if given.counts else {1, *(n for n in (2, 4, 8) if n <= there)}
    )
    plan = Plan(
        counts=counts,
        engines=given.engines or (["reference"] if given.cpu else ["reference", "fast"]),
        repeat=given.repeat,
        cpu=given.cpu,
        settings=[word for s in given.set for word in ("--set", s)],
        deadline=deadline,
    )
    report = Report(f"scaling on {', '.join(map(str, counts))} {'CPU ranks' if given.cpu else 'GPUs'}")
    works: dict[str, Callable[[], None]] = {
        "allreduce": lambda: all_reduce(plan, report),
        "recording": lambda: recording(plan, report),
        "faults": lambda: gpu_faults.faults(
            report, max(counts), cpu=plan.cpu, settings=plan.settings, left_s=plan.left_s
        ),
        "extrapolate": lambda: extrapolate(plan, report),
    }
    if given.cpu:  # a rank alone would take all cores, and stand still where somebody else works on one
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("LORAWATCH_HOME", home)
        paths.home().mkdir(parents=True, exist_ok=True)
        for part in (p for p in PARTS if p in given.parts):
            print(f"\n{part}, {plan.left_s():.0f} s left", flush=True)
            if part == "sweep":
                for engine in plan.engines:
                    sweep(plan, engine, report)
            elif part == "faults" and max(counts) < 2:
                print("  left out: one rank has no other that could be spared", flush=True)
            else:
                works[part]()
    print(f"\n{given.seconds - plan.left_s():.0f} s in all", flush=True)
    report.close()


if __name__ == "__main__":
    main()
