"""Sweeps with separate ranks and repeats, end to end: real torchrun, gloo on the CPU, a real DuckDB file."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from statistics import mean

import pytest
from helpers import (
    TINY,
    exit_records,
    finish,
    journal_steps,
    lorawatch,
    no_process_left,
    ranks_of,
    run_json,
    sql,
    start,
    the_run,
    wait_for,
    wait_for_step,
)

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import PhaseChange

SEPARATE = [*TINY, "--set", "launch.strategy=separate"]
LONG = ["--set", "train.steps=1000000"]

# What a rank runs before anything else: Python imports `sitecustomize` at its start.
ON_ARRIVAL = """
import os
if "RANK" in os.environ:
    rank = os.environ["RANK"]
    from lorawatch.training import start_barrier
    through = start_barrier.StartBarrier.wait
    def wait(self):
        {what}
        return through(self)
    start_barrier.StartBarrier.wait = wait
"""
TELL_THE_GROUP = """
        import gc, json, sys
        torch = sys.modules["torch"]
        wrapped = sum(isinstance(o, torch.nn.parallel.DistributedDataParallel) for o in gc.get_objects())
        facts = {"group": torch.distributed.is_initialized(), "world": os.environ.get("WORLD_SIZE"), "wrapped": wrapped}
        self._own.with_name(f"facts-{rank}.json").write_text(json.dumps(facts))
"""


def on_arrival(folder: Path, what: str) -> dict[str, str]:
    """An environment in which each rank of a separate run does something when it is ready, before it waits."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ON_ARRIVAL.replace("{what}", what.strip()))
    return {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def test_one_command_tells_what_coupling_costs(lorawatch_home: Path, tmp_path: Path) -> None:
    code, lines, err = run_json(
        [*TINY, "--sweep", "1,2", "--separate", "--repeat", "2", "--set", "train.steps=40"],
        env=on_arrival(tmp_path / "site", TELL_THE_GROUP),
        timeout=400,
    )
    assert code == 0, err
    runs = sql(
        lorawatch_home,
        "SELECT world_size, recipe ->> '$.launch.strategy', state, sweep_id, run_id FROM runs ORDER BY run_id",
    )
    ladder = [(1, "ddp", "completed"), (2, "ddp", "completed"), (2, "separate", "completed")]
    assert [r[:3] for r in runs] == ladder * 2  # in turns
    assert {r[3] for r in runs} == {runs[0][4]}

    # each configuration is the mean of its two runs
    tok_s = {
        key: [
            v for *k, v in sql(lorawatch_home, "SELECT world_size, coupling, tok_s FROM run_summary") if tuple(k) == key
        ]
        for key in ((1, "ddp"), (2, "ddp"), (2, "separate"))
    }
    scaling = {
        (ranks, coupling): figures
        for ranks, coupling, *figures in sql(
            lorawatch_home,
            "SELECT ranks, coupling, runs, tok_s, tok_s_ci95, efficiency_pct, coupling_efficiency_pct, "
            "shared_machine_loss_pct + communication_loss_pct FROM v_scaling",
        )
    }
    assert set(scaling) == set(tok_s)
    for key, figures in scaling.items():
        assert figures[0] == len(tok_s[key]) == 2
        assert figures[1] == pytest.approx(mean(tok_s[key]))
        assert figures[2] > 0
    one, coupled, apart = (mean(tok_s[key]) for key in ((1, "ddp"), (2, "ddp"), (2, "separate")))
    assert scaling[2, "ddp"][3:] == [
        pytest.approx(100 * coupled / (2 * one)),
        pytest.approx(100 * coupled / apart),
        pytest.approx(100 - 100 * coupled / (2 * one)),
    ]
    assert scaling[2, "separate"][3:] == [pytest.approx(100 * apart / (2 * one)), None, None]
    told = lines[-1]
    assert (told["type"], told["sweep_id"]) == ("sweep", runs[0][4])
    assert [(c["ranks"], c["coupling"], c["runs"]) for c in told["configurations"]] == [
        (1, "ddp", 2), (2, "ddp", 2), (2, "separate", 2),
    ]  # fmt: skip
    assert told["configurations"][1]["coupling_efficiency_pct"]["value"] == pytest.approx(100 * coupled / apart)

    # a separate rank is what a single one is: the same losses, on both ranks; coupled ones see other batches
    first, ddp, separate = (RunDir(lorawatch_home / "runs" / r[4]) for r in runs[:3])
    alone = [s["loss"] for s in journal_steps(first)]
    assert len(alone) == 40
    for rank in (0, 1):
        assert [s["loss"] for s in journal_steps(separate, rank)] == pytest.approx(alone, rel=1e-5)
    assert [s["loss"] for s in journal_steps(ddp, 0)] != pytest.approx([s["loss"] for s in journal_steps(ddp, 1)])
    assert (separate.adapter / "adapter_model.safetensors").is_file()
    for run in (RunDir(lorawatch_home / "runs" / r[4]) for r in runs if r[1] == "separate"):
        for rank in (0, 1):
            facts = json.loads((run.control / f"facts-{rank}.json").read_text())
            assert facts == {"group": False, "world": None, "wrapped": 0}
        began_together(run)


def began_together(run: RunDir) -> None:
    """No rank began its first step before all had arrived."""
    arrived, began = [], []
    for rank in (0, 1):
        lines = list(JournalTail(run.rank_journal(rank)).records())
        phases = [line for line in lines if isinstance(line, PhaseChange)]
        arrived += [p.at for p in phases if p.name == "waiting"]
        began += [p.at for p in phases if p.name == "training"]
    assert len(arrived) == len(began) == 2
    assert min(began) >= max(arrived)


def test_no_rank_of_a_separate_run_waits_for_another_to_stop(lorawatch_home: Path) -> None:
    process = start(*SEPARATE, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    ranks = ranks_of(run)
    wait_for(lambda: len(journal_steps(run, 1)) >= 3)
    ranks[1].suspend()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: run.exit_record(0, 0).exists())
    assert not run.exit_record(0, 1).exists()
    ranks[1].resume()
    out = finish(process)
    assert process.returncode == 130, out
    assert "each rank stops at its own next step" in out
    for rank, record in enumerate(exit_records(run)):
        assert record is not None
        assert record.status == "stopped"
        assert [s["step"] for s in journal_steps(run, rank)] == list(range(1, record.step + 1))
    assert not list(run.checkpoints.glob("*"))  # of which rank would it be?
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("stopped", None)]
    assert sql(lorawatch_home, "SELECT coupling, tok_s > 0 FROM run_summary") == [("separate", True)]
    no_process_left(run)


def test_a_killed_rank_of_a_separate_run_fails_it(lorawatch_home: Path) -> None:
    process = start(*SEPARATE, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    ranks_of(run)[1].kill()
    out = finish(process)
    assert process.returncode == 1, out
    assert run.state().failure == "signal"
    assert run.state().message == "rank 1 was ended by signal 9 (SIGKILL)"
    no_process_left(run)


@pytest.mark.parametrize(
    ("what", "failure", "message"),
    [
        ("raise ValueError('nothing to load')", "python_exception", "rank 1 at step 0: ValueError: nothing to load"),
        ("os.kill(os.getpid(), 9)", "signal", "rank 1 was ended by signal 9 (SIGKILL)"),
    ],
)
def test_a_rank_that_fails_before_the_start_leaves_nobody_waiting(
    lorawatch_home: Path, tmp_path: Path, what: str, failure: str, message: str
) -> None:
    # once rank 0 has come to the gate, so that there is somebody who could be left waiting
    arrives = f"""
        if rank == "1":
            import time
            while not self._all[0].exists():
                time.sleep(0.01)
            {what}
    """
    process = start(*SEPARATE, *LONG, env=on_arrival(tmp_path / "site", arrives))
    run = the_run(lorawatch_home)
    out = finish(process, 90)
    assert process.returncode == 1, out
    assert (run.state().failure, run.state().message) == (failure, message)
    assert journal_steps(run, 0) == journal_steps(run, 1) == []
    no_process_left(run)


@pytest.mark.parametrize(
    ("args", "words", "hint"),
    [
        (["--repeat", "0"], "--repeat 0 is no number of runs", "at least 1"),
        (["--gpus", "cpu:1", "--separate"], "the run has a single one", "--sweep 1,2 --separate"),
        (["--sweep", "1", "--separate"], "the run has a single one", "--gpus cpu:2 --separate"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    lorawatch_home: Path, args: list[str], words: str, hint: str
) -> None:
    result = lorawatch(*TINY, *args)
    assert result.returncode == 2
    assert words in result.stderr
    assert hint in result.stderr
    assert not (lorawatch_home / "runs").exists()
