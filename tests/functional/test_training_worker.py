"""The ranks under a real torchrun: what they write, how they stop together, how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.journal import JournalTail
from lorawatch.run.records import ExitRecord, PhaseChange, RankStarted, Step
from lorawatch.system.files import read_json

Start = Callable[..., tuple[RunDir, "subprocess.Popen[bytes]"]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the ranks of a recipe on the CPU as the recorder does; `patch` is Python that each rank runs first."""
    agents: list[subprocess.Popen[bytes]] = []

    def begin(
        name: str = "tiny", *overrides: str, ranks: int = 2, patch: str | None = None, restarts: int = 0
    ) -> tuple[RunDir, subprocess.Popen[bytes]]:
        recipe = loading.load(name, overrides)
        run = RunDir.create(
            RunInfo(
                run_id="", name=recipe.name, created_at=time.time(), host="h", user="u", world_size=ranks,
                device="cpu", recipe=recipe.to_dict(),
            )
        )  # fmt: skip
        run.recipe.write_text(recipe.to_yaml())
        entry = ["-m", "lorawatch.training.worker"]
        if patch is not None:
            script = tmp_path / "patched_worker.py"
            script.write_text(
                textwrap.dedent(patch) + "\nfrom lorawatch.training import worker\n"
                "if __name__ == '__main__':\n    worker.main()\n"
            )
            entry = [str(script)]
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend=c10d",
            "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", f"--max-restarts={restarts}",
            "--signals-to-handle", "SIGTERM,SIGINT",
        ]  # fmt: skip
        with open(run.logs / "torchrun.log", "wb") as log:
            agent = subprocess.Popen(
                [*command, *entry, str(run.root)], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        agents.append(agent)
        return run, agent

    yield begin
    for agent in agents:
        if agent.poll() is None:
            agent.kill()
        agent.wait()


def records(run: RunDir, rank: int) -> list[Any]:
    return list(JournalTail(run.rank_journal(rank)).records())


def steps(run: RunDir, rank: int) -> list[Step]:
    return [line for line in records(run, rank) if isinstance(line, Step)]


def ended(run: RunDir, rank: int, attempt: int = 0) -> ExitRecord:
    record = read_json(run.exit_record(attempt, rank), ExitRecord)
    assert record is not None, log(run)
    return record


def log(run: RunDir) -> str:
    return "\n".join(f"== {p}\n{p.read_text(errors='replace')}" for p in sorted(run.logs.rglob("*.log")))


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def test_two_ranks_journal_every_step_and_save_the_adapter(start: Start) -> None:
    run, agent = start("tiny", "train.gradient_accumulation=2")
    assert agent.wait(90) == 0, log(run)
    journals = [steps(run, rank) for rank in (0, 1)]
    for rank, journal in enumerate(journals):
        assert [s.step for s in journal] == list(range(1, 11))
        assert all((s.rank, s.attempt, s.tokens, s.nonpad_tokens) == (rank, 0, 128, 128) for s in journal)
        assert all(s.label_tokens == 4 * 31 for s in journal)
        assert [s.phase for s in journal] == ["warmup"] + ["train"] * 9
        wall = journal[-1].ended_at - journal[0].ended_at
        assert sum(s.duration_s for s in journal[1:]) == pytest.approx(wall, abs=0.02)
        assert ended(run, rank).status == "completed"
        assert ended(run, rank).step == 10
        started = next(line for line in records(run, rank) if isinstance(line, RankStarted))
        assert (started.rank, started.world_size, started.steps_total) == (rank, 2, 10)
        assert started.flops_per_token is not None
        phases = [line.name for line in records(run, rank) if isinstance(line, PhaseChange)]
        assert phases == ["loading", "tokenizing", "loading", "training", "saving", "finished"]
        # An untrained model on random tokens: the logarithm of the vocabulary, not a sum and not twice as much.
        assert all(s.loss == pytest.approx(5.77, abs=0.12) for s in journal)
    assert [s.loss for s in journals[0]] != [s.loss for s in journals[1]]  # each its own batches
    assert [s.grad_norm for s in journals[0]] == [s.grad_norm for s in journals[1]]  # of the averaged gradient
    assert sum(s.tokens or 0 for j in journals for s in j) == 10 * 2 * 4 * 32
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"] or set(config["target_modules"]) == {"q_proj", "v_proj"}
    assert (run.adapter / "adapter_model.safetensors").stat().st_size > 1792 * 4
    assert not [p for p in run.root.iterdir() if p.name.startswith(".adapter")]
    noise = [line for line in log(run).splitlines() if "Warning" in line or "warn" in line]
    assert noise == []


def test_real_rows_through_the_byte_tokenizer(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "chat.jsonl"
    rows = [{"prompt": "x" * (i % 7), "completion": "yes" if i % 2 else "no"} for i in range(12)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    run, agent = start("tiny", f"data.source={data}", "train.steps=null", "train.epochs=2")
    assert agent.wait(90) == 0, log(run)
    both = [steps(run, rank) for rank in (0, 1)]
    assert [s.step for s in both[0]] == [s.step for s in both[1]] == list(range(1, 7))
    # Two epochs of 12 rows: 3 + 1 or 2 + 1 learned tokens each, fewer where a row begins with one.
    nonpad = sum(s.nonpad_tokens or 0 for j in both for s in j)
    assert nonpad == 2 * sum(len(r["prompt"]) + len(r["completion"]) + 1 for r in rows)
    learned = sum(s.label_tokens or 0 for j in both for s in j)
    assert learned == 2 * sum(len(r["completion"]) + 1 - (not r["prompt"]) for r in rows)
    assert (run.adapter / "tokenizer.json").is_file()


def test_all_ranks_stop_at_the_same_step_and_save(start: Start) -> None:
    run, agent = start("tiny", "train.steps=1000000")
    wait_for(lambda: len(steps(run, 0)) > 3)
    run.request("stop")
    assert agent.wait(60) == 0, log(run)
    ends = [ended(run, rank) for rank in (0, 1)]
    assert {e.status for e in ends} == {"stopped"}
    assert ends[0].step == ends[1].step > 3
    assert [s.step for s in steps(run, 0)] == [s.step for s in steps(run, 1)] == list(range(1, ends[0].step + 1))
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert [p.name for p in run.checkpoints.iterdir()] == [f"step-{ends[0].step:08d}"]


RAISES = """
    import os
    from lorawatch.training.callback import StepCallback
    after = StepCallback.on_step_end
    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1" and state.global_step == 3:
            {what}
        return after(self, args, state, control, **kwargs)
    StepCallback.on_step_end = on_step_end
"""


def test_a_rank_that_raises_leaves_its_exception(start: Start) -> None:
    run, agent = start(patch=RAISES.format(what="raise ValueError('a bug of the user')"))
    assert agent.wait(60) != 0
    failed = ended(run, 1)
    assert (failed.status, failed.failure, failed.step) == ("failed", "python_exception", 2)
    assert failed.exception == "ValueError: a bug of the user"
    assert "on_step_end" in (failed.traceback or "")
    assert "a bug of the user" in run.rank_log(0, 1).read_text()
    other = ended(run, 0)  # ended by the agent, or by the broken connection; never the culprit
    assert other.status == "stopped" or other.failure == "nccl_timeout", msgspec.json.encode(other)
    assert [s.step for s in steps(run, 1)] == [1, 2]


def test_a_killed_rank_leaves_no_record_and_its_sibling_ends(start: Start) -> None:
    run, agent = start(patch=RAISES.format(what="os.kill(os.getpid(), 9)"))
    assert agent.wait(60) != 0
    assert not run.exit_record(0, 1).exists()
    assert ended(run, 0).status in ("stopped", "failed")


def test_a_restart_writes_the_next_attempt(start: Start) -> None:
    what = "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.kill(os.getpid(), 9)"
    run, agent = start(patch=RAISES.format(what=what), restarts=1)
    assert agent.wait(90) == 0, log(run)
    assert [(s.attempt, s.step) for s in steps(run, 0) if s.attempt == 1] == [(1, n) for n in range(1, 11)]
    assert ended(run, 0, attempt=1).status == "completed"


@pytest.mark.parametrize(
    ("override", "exception", "code"),
    [
        ("data.source=/no/such/file.jsonl", "DataError: data.source is '/no/such/file.jsonl': no such file", 2),
        ("lora.targets=[nothing]", "RecipeError: lora.targets: tiny-llama has no linear layer 'nothing'", 2),
        ("model.name=/no/such/model", "ModelNotFound: the shape of '/no/such/model' is not known here", 3),
    ],
)
def test_bad_input_is_told_in_one_line_with_a_hint(start: Start, override: str, exception: str, code: int) -> None:
    run, agent = start("tiny", override, ranks=1)
    assert agent.wait(60) != 0
    record = ended(run, 0)
    assert (record.exception, record.exit_code, record.status) == (exception, code, "failed")
    assert record.hint


def ranks_of(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [c for c in psutil.Process(agent.pid).children() if "lorawatch.training.worker" in " ".join(c.cmdline())]


def test_ranks_die_with_their_agent(start: Start) -> None:
    run, agent = start("tiny", "train.steps=1000000")
    wait_for(lambda: len(steps(run, 0)) > 3)
    ranks = ranks_of(agent)
    assert len(ranks) == 2
    agent.kill()
    agent.wait()
    _, alive = psutil.wait_procs(ranks, timeout=5)
    for survivor in alive:
        survivor.kill()  # they would step for ever
    assert not alive, "ranks went on without their agent"


def test_sigterm_ends_a_rank_that_waits_in_a_collective(start: Start) -> None:
    run, agent = start(patch=RAISES.format(what="import time; time.sleep(1000)"))
    wait_for(lambda: len(steps(run, 0)) >= 3)
    time.sleep(0.3)  # rank 0 waits for rank 1's gradients
    agent.send_signal(signal.SIGTERM)
    began = time.monotonic()
    agent.wait(30)
    assert time.monotonic() - began < 25, "ended by SIGTERM, not by torchrun's SIGKILL after 30 s"
    assert ended(run, 0).status == "stopped"
    assert ended(run, 0).step == 3
    assert ended(run, 1).status == "stopped"


def test_stacks_on_request_and_the_run_goes_on(start: Start) -> None:
    run, agent = start(patch=RAISES.format(what="import time; time.sleep(3)"))
    wait_for(lambda: len(steps(run, 0)) >= 3)
    time.sleep(0.5)
    script = str(run.root)
    for child in psutil.Process(agent.pid).children():
        if script in child.cmdline():
            child.send_signal(signal.SIGUSR1)
    assert agent.wait(60) == 0, log(run)
    assert "on_step_end" in (run.stacks / "rank-1.txt").read_text()
    assert "on_step_end" not in (run.stacks / "rank-0.txt").read_text()  # that one is in the collective


def test_printing_into_a_full_disk_ends_nothing(start: Start) -> None:
    patch = """
        import os, sys
        from lorawatch.training import guards
        quiet = guards.quiet_streams
        def quiet_streams():
            quiet()
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, 1); os.dup2(full, 2)
            print("lost"); print("lost", file=sys.stderr)
        guards.quiet_streams = quiet_streams
    """
    run, agent = start(patch=patch, ranks=1)
    assert agent.wait(60) == 0
    assert ended(run, 0).status == "completed"
