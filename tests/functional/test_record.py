"""`lorawatch --record`, end to end: real torchrun, two gloo ranks, a real DuckDB file."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import (
    ONE_RANK,
    TINY,
    command,
    exit_records,
    finish,
    journal_steps,
    kill_all,
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

from lorawatch.run.directory import ENDED, RunDir

LONG = ["--set", "train.steps=100000"]


def test_a_run_is_recorded_from_its_first_step_to_its_summary(lorawatch_home: Path) -> None:
    code, lines, err = run_json([*TINY, "--tag", "t1", "--set", "train.steps=12"])
    assert code == 0, err
    run = the_run(lorawatch_home)
    # what the screen said, what the journals say and what the history says are one thing
    assert [line["step"] for line in lines if line["type"] == "step"] == list(range(1, 13))
    journaled = {(s["rank"], s["step"]): s for rank in (0, 1) for s in journal_steps(run, rank)}
    rows = sql(
        lorawatch_home, "SELECT rank, step, tokens, nonpad_tokens, label_tokens, loss, duration_s, phase FROM steps"
    )
    assert len(rows) == len(journaled) == 24
    for rank, step, tokens, nonpad, labels, loss, duration, phase in rows:
        line = journaled[rank, step]
        assert (tokens, nonpad, labels) == (line["tokens"], line["nonpad_tokens"], line["label_tokens"])
        assert (loss, duration) == (pytest.approx(line["loss"]), pytest.approx(line["duration_s"]))
        assert phase == ("warmup" if step == 1 else "train")
    ((tokens,),) = sql(lorawatch_home, "SELECT sum(tokens) FROM steps WHERE step = 5")
    assert tokens == 2 * 2 * 32  # ranks × batch × sequence
    ((state, name, world, tags),) = sql(lorawatch_home, "SELECT state, name, world_size, tags FROM runs")
    assert (state, name, world, tags) == ("completed", "tiny", 2, ["t1"])
    ((tok_s, measured, run_tokens, loss),) = sql(
        lorawatch_home, "SELECT tok_s, measured_steps, tokens, final_loss FROM run_summary"
    )
    ends = {n: max(journaled[rank, n]["ended_at"] for rank in (0, 1)) for n in range(1, 13)}
    seconds = ends[12] - ends[1]
    assert measured == 11
    assert tok_s == pytest.approx(11 * 128 / seconds, rel=0.03)
    assert run_tokens in (11 * 128, 12 * 128)
    assert loss > 0
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 0
    assert sql(lorawatch_home, "SELECT count(*) > 0 FROM host_samples") == [(True,)]
    no_process_left(run)


def test_on_a_terminal_the_table_is_live_and_the_summary_stays(lorawatch_home: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(*TINY), stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}
    )
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                seen += os.read(master, 65536)
            except OSError:  # the other side has closed
                break
        elif process.poll() is not None:
            break
    assert process.wait(10) == 0
    os.close(master)
    text = seen.decode(errors="replace")
    assert "RUNNING" in text
    assert "ETA" in text
    assert "rank" in text
    assert text.rstrip().endswith(text.rstrip()[-1])
    assert "completed" in text


def test_a_terminal_that_goes_away_leaves_the_run_alone(lorawatch_home: Path) -> None:
    master, slave = pty.openpty()
    args = command(*ONE_RANK, "--set", "train.steps=200")
    process = subprocess.Popen(args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    run = the_run(lorawatch_home)
    wait_for_step(run, 5)
    os.close(master)  # every write to the terminal fails from here on
    process.send_signal(signal.SIGHUP)
    assert process.wait(90) == 0
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    assert sql(lorawatch_home, "SELECT count(*) FROM v_steps") == [(200,)]
    no_process_left(run)


def test_the_first_interrupt_stops_all_ranks_at_one_step_and_saves(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    process.send_signal(signal.SIGINT)
    out = finish(process)
    assert process.returncode == 130, out
    records = exit_records(run)
    assert {r.status for r in records if r} == {"stopped"}
    assert len({r.step for r in records if r}) == 1
    assert len(journal_steps(run, 0)) == len(journal_steps(run, 1))
    assert (run.adapter / "adapter_model.safetensors").exists()
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("stopped", None)]
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(2 * len(journal_steps(run, 0)),)]
    no_process_left(run)


def test_sigterm_stops_as_cleanly_and_says_so_in_the_exit_status(lorawatch_home: Path) -> None:
    process = start(*ONE_RANK, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 143
    assert (run.adapter / "adapter_model.safetensors").exists()


def test_the_second_interrupt_ends_at_once_and_leaves_no_orphan(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 3)
    for rank in ranks_of(run).values():
        rank.send_signal(signal.SIGSTOP)  # nobody will agree on a step
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    finish(process)
    assert time.monotonic() - asked < 25, "torchrun itself waits 30 s for its ranks"
    assert process.returncode == 130
    assert run.state().state == "stopped"
    no_process_left(run)


def test_stop_before_the_first_step_ends_soon(lorawatch_home: Path) -> None:
    process = start(*ONE_RANK, *LONG)
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().launcher)
    process.send_signal(signal.SIGINT)
    finish(process, 60)
    assert process.returncode == 130
    no_process_left(run)


def test_a_killed_recorder_leaves_the_ranks_training_and_adopt_records_on(lorawatch_home: Path) -> None:
    process = start(*TINY, "--set", "train.steps=600")
    run = the_run(lorawatch_home)
    wait_for_step(run, 20)
    process.kill()
    process.wait()
    before = len(journal_steps(run))
    wait_for(lambda: len(journal_steps(run)) > before + 5)
    result = lorawatch("adopt", run.run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    assert sql(lorawatch_home, "SELECT count(*), count(DISTINCT (rank, step)) FROM steps") == [(1200, 1200)]
    assert sql(lorawatch_home, "SELECT count(*) FROM run_summary") == [(1,)]
    no_process_left(run)


def test_a_recorder_and_ranks_killed_together_are_found_lost_by_the_next_command(lorawatch_home: Path) -> None:
    process = start(*TINY, *LONG)
    run = the_run(lorawatch_home)
    wait_for_step(run, 5)
    kill_all(run, process)
    steps = len(journal_steps(run, 0)) + len(journal_steps(run, 1))
    result = lorawatch("runs")
    assert result.returncode == 0, result.stderr
    assert "lost" in result.stdout
    assert sql(lorawatch_home, "SELECT count(*) FROM steps") == [(steps,)]
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("lost",)]


def test_a_detached_run_is_followed_and_stopped_from_another_shell(lorawatch_home: Path) -> None:
    result = lorawatch(*ONE_RANK, *LONG, "--detach")
    assert result.returncode == 0, result.stderr
    run = RunDir.find(result.stdout.strip())
    wait_for_step(run, 3)
    watcher = start("attach", run.run_id, "--json")
    stopped = lorawatch("stop", run.run_id[:8], "--wait")
    assert stopped.returncode == 0, stopped.stderr
    assert run.state().state == "stopped"
    lines = finish(watcher)
    steps = [json.loads(line)["step"] for line in lines.splitlines() if '"type":"step"' in line]
    assert steps == list(range(1, len(steps) + 1)), "attach shows the whole curve, not only what came since"
    assert len(steps) >= 3
    again = lorawatch("stop", run.run_id)
    assert again.returncode == 1
    assert "has ended already (stopped)" in again.stderr


def test_an_own_command_is_supervised_and_its_status_kept(lorawatch_home: Path) -> None:
    result = lorawatch("--record", "--", "sleep", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert sql(lorawatch_home, "SELECT state, name FROM runs") == [("completed", "sleep")]
    assert sql(lorawatch_home, "SELECT count(*) > 0 FROM host_samples") == [(True,)]


def test_an_own_command_that_fails_fails_the_run(lorawatch_home: Path) -> None:
    result = lorawatch("--record", "--", "false")
    assert result.returncode == 1
    assert "status 1" in result.stdout
    assert sql(lorawatch_home, "SELECT state, failure FROM runs") == [("failed", "nonzero_exit")]


def test_an_own_command_that_is_not_there_is_named(lorawatch_home: Path) -> None:
    result = lorawatch("--record", "--", "no-such-program-xyz")
    assert result.returncode == 3
    assert "no program 'no-such-program-xyz'" in result.stderr


def test_an_own_command_is_stopped_with_its_children(lorawatch_home: Path) -> None:
    process = start("--record", "--", "bash", "-c", "sleep 1000 & sleep 1000; true")
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state == "running" and run.state().launcher)
    launcher = run.state().launcher
    assert launcher is not None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode == 130
    assert not launcher.alive()
    left = [p for p in psutil.process_iter() if _group(p) == launcher.pid and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None


SCRIPT = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from lorawatch import StepCallback

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2))
rows = [{"input_ids": torch.randint(0, 64, (16,)), "labels": torch.randint(0, 64, (16,))} for _ in range(64)]
args = TrainingArguments(output_dir="OUT", max_steps=8, per_device_train_batch_size=4, report_to="none", use_cpu=True,
    save_strategy="no", disable_tqdm=True)
Trainer(model=model, args=args, train_dataset=rows, callbacks=[StepCallback()]).train()
"""


def test_one_line_in_any_trainer_script_brings_its_steps(lorawatch_home: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("OUT", str(tmp_path / "out")))
    result = lorawatch("--record", "--", sys.executable, str(script))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = sql(lorawatch_home, "SELECT step, tokens, loss FROM steps ORDER BY step")
    assert [(step, tokens) for step, tokens, _ in rows] == [(n, 64) for n in range(1, 9)]
    assert all(2 < loss < 6 for _, _, loss in rows)
    assert sql(lorawatch_home, "SELECT state, world_size FROM runs") == [("completed", 1)]


def test_a_restart_after_a_killed_rank_finishes_the_run(lorawatch_home: Path) -> None:
    process = start(*TINY, "--set", "train.steps=200", "--set", "launch.max_restarts=2")
    run = the_run(lorawatch_home)
    wait_for_step(run, 5)
    ranks_of(run)[1].kill()
    out = finish(process, 180)
    assert process.returncode == 0, out
    assert "started again" in out
    assert sql(lorawatch_home, "SELECT state, attempts FROM runs") == [("completed", 2)]
    assert sql(lorawatch_home, "SELECT count(*) FROM v_steps") == [(200,)]
    assert run.state().state in ENDED
