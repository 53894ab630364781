"""How ranks are started, by torchrun, by the user's command, or by a launcher whose ranks are on other hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from history import make_run, rows

from lorawatch.errors import MissingDependency, UsageError
from lorawatch.launch.choose import LOG_NAMES, launcher_of
from lorawatch.launch.command import OwnCommand
from lorawatch.launch.launcher import Attempt, start
from lorawatch.launch.placement import Placement
from lorawatch.recipe import loading
from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir

TESTS = Path(__file__).parents[1]


@pytest.fixture
def run(lorawatch_home: Path) -> RunDir:
    return make_run()


def test_a_command_is_started_as_it_was_typed_in_a_session_of_its_own_and_writes_into_its_log(run: RunDir) -> None:
    words = "import os; print(os.environ['LORAWATCH_RUN_DIR'], os.getsid(0) == os.getpid(), os.environ['X'])"
    log = run.logs / "command.log"
    process = start(OwnCommand(run, [sys.executable, "-c", words]), Attempt(variables={"X": "é ok"}), log)
    assert process.wait() == 0
    assert log.read_text() == f"{run.root} True é ok\n"


def test_what_cannot_be_started_says_what_to_do(run: RunDir, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(MissingDependency, match="there is no program 'no-such-program'"):
        start(OwnCommand(run, ["no-such-program"]), Attempt(), log)
    plain = tmp_path / "plain"
    plain.touch(mode=0o600)
    with pytest.raises(MissingDependency, match="may not be executed"):
        start(OwnCommand(run, [str(plain)]), Attempt(), log)
    with pytest.raises(UsageError, match="was given to another recorder and is in no file"):
        start(OwnCommand(run), Attempt(), log)


def test_a_run_has_the_launcher_that_was_asked_for(run: RunDir) -> None:
    info = run.info()
    recipe = loading.load("tiny", ["launch.max_restarts=2"])
    torchrun = launcher_of(run, info, recipe=recipe, placement=Placement("cpu", 2))
    assert (torchrun.log_name, torchrun.world_size) == ("torchrun.log", 2)
    line = torchrun.command()
    assert {"--nproc-per-node=2", "--max-restarts=2", "lorawatch.training.worker", str(run.root)} <= set(line)
    assert list(torchrun.recorded_command or ()) == line
    env = torchrun.environment(Attempt(3, 40, {"NCCL_P2P_DISABLE": "1"}))
    names = (
        RUN_DIR_VARIABLE,
        "LORAWATCH_FIRST_ATTEMPT",
        "LORAWATCH_RESUMED_AT",
        "NCCL_P2P_DISABLE",
        "CUDA_VISIBLE_DEVICES",
    )
    assert [env[name] for name in names] == [str(run.root), "3", "40", "1", ""]
    info.own_command = True
    own = launcher_of(run, info, command=["train.sh", "--token", "secret"])
    assert (own.log_name, own.world_size, own.recorded_command) == ("command.log", None, None)
    assert own.command() == ["train.sh", "--token", "secret"]
    assert {torchrun.log_name, own.log_name} == set(LOG_NAMES)


REMOTE = """
import sys
from pathlib import Path
import lorawatch.recorder.recorder as module
from lorawatch.run.directory import RunDir
from lorawatch.run.verdict import LauncherEnd

class Remote:
    log_name, world_size, local_ranks, recorded_command = "srun.log", 2, False, ["srun", "…"]
    def command(self): return [sys.executable, sys.argv[2], sys.argv[1]]
    def environment(self, attempt): return {"PYTHONPATH": sys.argv[3]}
    def end(self, exit_code, log): return LauncherEnd("srun", "srun", exit_code=exit_code, exception=log.strip() or None)

module.launcher_of = lambda *args, **more: Remote()
state = module.Recorder(RunDir(Path(sys.argv[1]))).run()
print(state.state, state.message)
"""
RANKS = """
import sys, time
from pathlib import Path
import msgspec
from history import step, write
from lorawatch.run.directory import RunDir
from lorawatch.run.records import ExitRecord, RankStarted
from lorawatch.system.processes import ProcessId

run, now = RunDir(Path(sys.argv[1])), time.time()
for rank, host in enumerate(("n1", "n2")):
    there = ProcessId(4321, 7, "another boot", host=host)
    begun = RankStarted(
        at=now, attempt=0, rank=rank, local_rank=0, world_size=2, host=host, pid=4321, device="cpu", process=there
    )
    write(run.rank_journal(rank), begun, step(1, rank, ended_at=now), step(2, rank, ended_at=now + 0.1))
    record = ExitRecord(rank=rank, attempt=0, at=now, status="completed", step=2, steps_made=2)
    run.exit_record(0, rank).write_bytes(msgspec.json.encode(record))
time.sleep(1)
"""


def test_ranks_of_other_hosts_are_recorded_without_a_process_here(run: RunDir, tmp_path: Path) -> None:
    """A launcher as Slurm's will be: one process here, ranks elsewhere that write into the run's directory."""
    ranks = tmp_path / "ranks.py"
    ranks.write_text(textwrap.dedent(RANKS), encoding="utf-8")
    recorder = [sys.executable, "-c", REMOTE, str(run.root), str(ranks), os.pathsep.join([str(TESTS), *sys.path])]
    done = subprocess.run(recorder, capture_output=True, text=True, timeout=60)
    assert done.stdout == "completed None\n", done.stderr
    assert run.info().command == ["srun", "…"]
    assert (run.logs / "srun.log").exists()
    kinds = [json.loads(line)["kind"] for line in run.events_journal.read_text().splitlines()]
    assert "foreign_rank" not in kinds
    assert kinds[-1] == "ended"
    assert rows("SELECT count(*), count(DISTINCT rank) FROM steps") == [(4, 2)]
