"""Dead processes, a held history, full disks: the verdict is right, nothing recorded is lost, nobody is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import (
    TINY,
    finish,
    journal_steps,
    lorawatch,
    no_process_left,
    ranks_of,
    sql,
    start,
    the_run,
    wait_for,
    wait_for_step,
)

LONG = ["--set", "train.steps=100000"]


def test_a_killed_rank_fails_the_run_as_a_signal_and_is_named(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    ranks_of(run)[1].kill()
    out = finish(process)
    assert process.returncode == 1
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("failed", "signal")]
    assert "SIGKILL" in out
    assert "rank 1" in out
    no_process_left(run)
    steps = len(journal_steps(run, 0)) + len(journal_steps(run, 1))
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(steps,)]


@pytest.mark.slow
def test_a_killed_agent_takes_its_ranks_along(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    launcher = run.state().launcher
    assert launcher is not None
    launcher.send(signal.SIGKILL)
    finish(process)
    assert process.returncode == 1
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("failed", "signal")]
    no_process_left(run)


def test_a_rank_that_raises_is_quoted(lorawatch_home: Path, tmp_path: Path) -> None:
    # a real exception inside a rank: no reader of the tokens the model is asked to embed
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import threading, time\n"
        "    def boom():\n"
        "        while 'torch.nn.functional' not in sys.modules: time.sleep(.05)\n"
        "        import torch\n"
        "        def fail(*a, **k): raise ValueError('the planted mistake')\n"
        "        torch.nn.functional.cross_entropy = fail\n"
        "    threading.Thread(target=boom, daemon=True).start()\n"
    )
    result = lorawatch(*TINY, *LONG, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "the planted mistake" in result.stdout
    assert "rank 1" in result.stdout
    assert sql(lorawatch_home, "SELECT failure FROM runs") == [("python_exception",)]
    no_process_left(the_run(lorawatch_home))


@pytest.mark.slow
def test_a_history_held_by_somebody_else_costs_no_line(lorawatch_home: Path) -> None:
    assert lorawatch(*TINY).returncode == 0
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import duckdb, time; c = duckdb.connect({str(lorawatch_home / 'history.duckdb')!r}); "
            "print('held', flush=True); time.sleep(20)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    result = lorawatch(*TINY, "--set", "train.steps=40", timeout=150)
    assert time.monotonic() - began > 12, "it has to wait for the history at its end"
    holder.wait()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 40/40" in result.stdout, "the run goes on while the history is held"
    assert "history" in result.stdout
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(20 + 80,)]
    assert sql(lorawatch_home, "SELECT count(*) FROM run_summary") == [(2,)]


@pytest.mark.slow
def test_a_history_that_is_no_database_is_set_aside(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    (lorawatch_home / "history.duckdb").write_bytes(b"my precious notes\n" * 1000)
    result = lorawatch(*TINY)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(20,)]
    (kept,) = [p for p in lorawatch_home.iterdir() if p.name.startswith("history.duckdb.") and "damaged" in p.name]
    assert kept.read_bytes().startswith(b"my precious notes")


@pytest.mark.slow
def test_a_hung_rank_is_found_and_its_stack_written(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG, "--set", "launch.hang_timeout_s=33")
    run = the_run(lorawatch_home)
    wait_for_step(run, 5)
    stopped = ranks_of(run)[1]
    stopped.send_signal(signal.SIGSTOP)
    out = finish(process, 120)
    assert process.returncode == 1
    assert f"rank 1 is stopped: kill -CONT {stopped.pid} lets it go on" in out
    assert "rank 1 is stopped; the ranks' stacks are in" in (run.state().message or "")
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("failed", "hang")]
    assert "no step for" in out
    stacks = (run.stacks / "rank-0.txt").read_text()
    assert "File" in stacks, "the rank that waits shows where"
    no_process_left(run)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_costs_neither_the_run_nor_a_line(tmp_path: Path, lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(lorawatch_home)], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        process = start(*TINY, "--set", "train.steps=1500")
        run = the_run(lorawatch_home)
        wait_for_step(run, 20)
        ballast = lorawatch_home / "ballast"
        with open(ballast, "wb") as file:  # somebody else fills the disk
            try:
                while True:
                    file.write(b"\0" * 65536)
                    file.flush()
            except OSError:
                pass
        with open(ballast, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 512)
            except OSError:
                pass
        stuck = len(journal_steps(run))
        time.sleep(3)
        assert process.poll() is None, "a full disk must not end the run"
        assert len(journal_steps(run)) - stuck < 100
        ballast.unlink()
        wait_for(lambda: len(journal_steps(run)) > stuck + 20)
        out = finish(process)
        assert process.returncode == 0, out
        assert sql(lorawatch_home, "SELECT count(*), count(DISTINCT (rank, step)) FROM steps") == [(3000, 3000)]
    finally:
        subprocess.run(["umount", "-l", str(lorawatch_home)], check=False)


OUT_OF_MEMORY = """
import sys
if "lorawatch.training.worker" in " ".join(sys.orig_argv):
    from lorawatch.models import memory
    from lorawatch.recipe import loading
    from lorawatch.training import observer, outcome

    class OutOfMemoryError(RuntimeError):
        pass

    def phase(self, name, detail=None):
        if name == "training":
            raise OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB of which "
                "1.31 GiB is free. "
                "Including non-PyTorch memory, this process has 22.1 GiB memory in use."
            )
        told(self, name, detail)

    told, observer.Observer.phase = observer.Observer.phase, phase
    asked = loading.load("exxact-8b", ["train.batch_size_per_gpu=8"])

    def failed(self, error):
        self.out_of_memory_hint = lambda: memory.shortage(asked, 2, 24 << 30)
        return recorded(self, error)

    recorded, outcome.ExitReport.failed = outcome.ExitReport.failed, failed
"""


def test_a_run_out_of_memory_says_everywhere_what_would_fit(lorawatch_home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    result = lorawatch(*TINY, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1, result.stdout + result.stderr
    run = the_run(lorawatch_home)
    assert (run.state().state, run.state().failure) == ("failed", "cuda_oom")
    hint = "it wanted 2.00 GiB where 1.31 GiB was free: the run needs about "
    shown = lorawatch("show", run.run_id).stdout
    ((in_history,),) = sql(lorawatch_home, "SELECT message FROM runs")
    for text in (result.stdout, shown, in_history):
        flat = " ".join(text.split())
        assert "CUDA out of memory. Tried to allocate 2.00 GiB" in flat
        assert hint in flat
        assert "what would fit: train.batch_size_per_gpu 1 instead of 8: " in flat
        assert "; or train.gradient_checkpointing true" in flat
