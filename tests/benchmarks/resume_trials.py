"""20 runs of two CPU ranks, killed with SIGKILL at random moments and resumed: the curves, the checkpoints, what is repeated.

`python tests/benchmarks/resume_trials.py [TRIALS] [SEED]`

Every other kill waits for a save to begin. Steps count as repeated where a journal had them: what a rank did in its last
tenth of a second died with it.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Report

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import TINY, finish, journal_steps, kill_all, lorawatch, processes_of, ranks_of, start, the_run, wait_for

from lorawatch.run import checkpoints
from lorawatch.run.directory import ENDED, RunDir

STEPS, EVERY = 150, 10
# Dropout makes the random numbers count, accumulation and the cosine every other state.
ARGS = [
    *TINY, "--set", f"train.steps={STEPS}", "--set", f"train.checkpoint_every={EVERY}", "--set", "lora.dropout=0.1",
    "--set", "train.gradient_accumulation=2", "--set", "train.schedule=cosine",
]  # fmt: skip


def curve(run: RunDir) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Loss, gradient norm, learning rate and tokens by rank and step; the latest attempt counts."""
    found: dict[tuple[int, int], tuple[Any, ...]] = {}
    for rank in (0, 1):
        for s in sorted(journal_steps(run, rank), key=lambda s: s["attempt"]):
            found[rank, s["step"]] = (s["loss"], s["grad_norm"], s["learning_rate"], s["tokens"])
    return found


def last_step(run: RunDir) -> int:
    return max((s["step"] for s in journal_steps(run)), default=0)


def kill(run: RunDir, recorder: Any, dice: random.Random) -> str:
    """SIGKILL to one rank, to the agent, or to everything at once."""
    victims = dice.choice(["everything", "everything", "rank 0", "rank 1", "agent"])
    if victims == "everything":
        kill_all(run, recorder)
    elif victims == "agent":
        launcher = run.state().launcher
        assert launcher is not None
        os.kill(launcher.pid, 9)
    else:
        ranks_of(run)[int(victims[-1])].kill()
    if victims != "everything":
        finish(recorder)
    wait_for(lambda: not processes_of(run))
    return victims


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    dice = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
    report = Report(f"{trials} runs killed at random moments and resumed, {STEPS} steps, a checkpoint every {EVERY}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORAWATCH_HOME"] = f"{folder}/whole"
        assert lorawatch(*ARGS).returncode == 0
        whole = curve(the_run(Path(folder) / "whole"))
        assert len(whole) == 2 * STEPS
        different = corrupt = failed = 0
        repeated: list[int] = []
        in_a_save = 0
        for trial in range(trials):
            home = Path(folder) / str(trial)
            os.environ["LORAWATCH_HOME"] = str(home)
            recorder = start(*ARGS)
            run = the_run(home)
            wait_for(lambda run=run: checkpoints.folders(run.checkpoints), 120, 0.005)
            aim = dice.randrange(EVERY, STEPS - 5)
            wait_for(lambda run=run, aim=aim: last_step(run) >= aim or run.state().state in ENDED, 120, 0.005)
            if trial % 2:  # into a save
                wait_for(lambda run=run: [*run.checkpoints.glob(".step-*")] or run.state().state in ENDED, 120, 0.001)
                time.sleep(dice.uniform(0, 0.04))
            else:
                time.sleep(dice.uniform(0, 0.25))  # ranks journal ten times a second
            victims = kill(run, recorder, dice)
            if run.adapter.exists():
                print(f"    trial {trial + 1}: it had ended before it could be killed")
                continue
            reached, unfinished = last_step(run), len(list(run.checkpoints.glob(".step-*")))
            in_a_save += bool(unfinished)
            left = checkpoints.folders(run.checkpoints)
            for checkpoint in left:
                try:
                    checkpoints.read(checkpoint)
                except Exception as error:
                    corrupt += 1
                    print(f"    {error}")
            result = lorawatch("--record", "--resume", run.run_id)
            again = [s["step"] for s in journal_steps(run) if s["attempt"] == 1]
            same = curve(run) == whole
            failed += result.returncode != 0
            different += not same
            repeated.append(reached - min(again, default=1) + 1)
            print(
                f"    trial {trial + 1}: {victims} killed at step {reached}{', in a save' if unfinished else ''}; "
                f"went on after step {min(again, default=1) - 1}, {'the same curve' if same else 'ANOTHER CURVE'}",
                flush=True,
            )
    report.figure("resumed runs that did not complete", failed, "runs", most=0)
    report.figure("curves that differ in any bit", different, "curves", most=0)
    report.figure("damaged checkpoints", corrupt, "", most=0)
    report.figure("steps repeated, at most", max(repeated), "steps", most=EVERY)
    report.figure("steps repeated, in the mean", sum(repeated) / len(repeated), "steps")
    report.figure("kills that hit a save", in_a_save, "kills")
    report.close()


if __name__ == "__main__":
    main()
