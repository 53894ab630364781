"""kill -9 at random moments, again and again in the same run: recorder, agent, ranks, while steps, saves and evaluations go on.

    python tests/faults/kills.py --kills 200 --minutes 30 --seed 1

Three of four kills hit runs of the recipe `tiny`, under torchrun with two gloo ranks, which save and evaluate every few steps: a
killed recorder is followed by `adopt`, a killed agent or rank by `--record --resume` once the attempt has ended. The rest hit
light runs (`light.py`). A run takes many kills; at its end, and after each attempt's, no file of it may be unreadable, no process
may be left after ten seconds, and every complete journal line is in the history exactly once. The exit status is 1 where
something is wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from herd import Command, Herd
from races import LIGHT, run_of, until
from soundness import (
    bad_files,
    bad_history,
    bad_owners,
    bad_steps,
    bad_words,
    journal_rows,
    left_processes,
    temporary_files,
)

from lorawatch.run.directory import ENDED
from lorawatch.run.journal import JournalTail
from lorawatch.run.liveness import liveness
from lorawatch.run.records import PhaseChange
from lorawatch.system.processes import ProcessId

SETTINGS = (
    "train.steps=10000", "train.checkpoint_every=15", "train.eval_every=25", "train.keep_checkpoints=3",
    "data.eval_share=0.002",
)  # fmt: skip
VICTIMS = ("recorder",) * 30 + ("rank", "rank", "agent", "recorder and agent")
LIGHT_VICTIMS = ("recorder",) * 18 + ("rank", "agent")
_END_S = 40.0


@dataclass
class Count:
    """What was done, and what is wrong."""

    problems: list[str] = field(default_factory=list)
    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By whose run, who was killed, and what rank 0 was busy with."""
    commands: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    most: int = 0
    """The most kills that one run took."""
    checkpoints: int = 0
    rows: int = 0


class Run:
    """One run, its present recorder, and the kills that it takes.

    Args:
        herd: Starts the commands.
        folder: In which light ranks count their steps.
        light: A light run, which cannot be resumed; otherwise one of a recipe.
        shared: Takes the counts.
    """

    def __init__(self, herd: Herd, folder: Path, choose: random.Random, shared: Count, *, light: bool) -> None:
        folder.mkdir()
        self.herd, self.folder, self.light = herd, folder, light
        self.choose, self.count = choose, shared
        self.kills = self.orphaned = 0
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        what = ["--", *LIGHT, "1000000", "0.01"] if light else settings
        recipe = [] if light else ["tiny"]
        words = ["--record", *recipe, "--tag", folder.name, *what]
        self.recorder = herd.start(*words, env={"LIGHT_MADE": str(folder)})
        self.run = run_of(herd.home, folder.name)
        self._tail = JournalTail(self.run.rank_journal(0))
        self._phase = "loading"

    # --- where it stands

    def steps_on(self, timeout: float = 60) -> bool:
        """Wait until a rank makes steps in this attempt."""
        state = self.run.state()
        return until(lambda: self.run.state().step > state.step or self.run.state().state in ENDED, timeout)

    def busy_with(self) -> str:
        for line in self._tail.records(1 << 30):
            if isinstance(line, PhaseChange):
                self._phase = line.name
        return self._phase

    def victims(self, who: str) -> list[ProcessId]:
        state = self.run.state()
        rank = self.choose.choice(state.ranks) if state.ranks else None
        found = {
            "recorder": [state.recorder],
            "rank": [rank],
            "agent": [state.launcher],
            "recorder and agent": [state.recorder, state.launcher],
        }[who]
        return [process for process in found if process is not None and process.alive()]

    # --- what is done to it

    def kill(self, who: str) -> None:
        busy = self.busy_with()
        for victim in self.victims(who):
            self.recorder.killed = self.recorder.killed or victim.pid == self.recorder.pid
            if victim.send(signal.SIGKILL):
                self.kills += 1
                name = "agent" if victim == self.run.state().launcher else who.split()[0]
                self.count.kills["light" if self.light else "recipe", name, busy] += 1
                self.orphaned += name == "recorder"
                until(lambda victim=victim: not victim.alive(), 5)

    def go_on(self) -> bool:
        """What a person would do next: adopt, or once it has ended resume. Returns whether the run lives again."""
        if not until(lambda: liveness(self.run).kind != "recorded" or not self._ending(), _END_S):
            self.count.problems.append(f"{self.run} does not end: {self.run.state()}")
            return False
        kind = liveness(self.run).kind
        if kind == "recorded":
            return True
        if kind == "unrecorded":
            self._command("adopt", self.run.run_id)
            return until(lambda: liveness(self.run).kind in ("recorded", "ended"), 20)
        self.look()
        if self.light:
            return False
        self._command("--record", "--resume", self.run.run_id)
        if not until(lambda: liveness(self.run).kind == "recorded" or self.recorder.code is not None, 20):
            self.count.problems.append(f"{self.recorder} does not begin: {self.recorder.err}")
        if self.recorder.code is not None and "no checkpoint to go on from" not in self.recorder.err:
            self.count.problems.append(f"{self.recorder} does not resume: {self.recorder.err}")
        if self.recorder.code is None and self.choose.random() < 0.8:
            self.steps_on()
        return self.recorder.code is None

    def _ending(self) -> bool:
        """Whether the attempt ends: a process of it was killed, and its recorder sees to the rest."""
        state = self.run.state()
        known = [p for p in (state.launcher, *state.ranks) if p is not None]
        return not all(p.alive() for p in known)

    def _command(self, *words: str) -> None:
        self.count.commands["resume" if "--resume" in words else words[0]] += 1
        self.recorder.wait(10)  # the one before has seen the end of the run, and brings in its last lines
        self.count.problems += bad_words(self.recorder)
        self.recorder = self.herd.start(*words, env={"LIGHT_MADE": str(self.folder)})

    def end(self) -> None:
        """Stop it, with an adoption where it has no recorder, and look at everything."""
        deadline = time.monotonic() + _END_S
        while self.run.state().state not in ENDED and time.monotonic() < deadline:
            if not self.run.requested("stop"):
                self.herd.run("stop", self.run.run_id)
            kind = liveness(self.run).kind
            if kind == "unrecorded":
                self._command("adopt", self.run.run_id)
            elif kind == "over":
                self.herd.run("runs")
            time.sleep(0.2)
        self.recorder.wait(20)
        self.look()
        self.count.most = max(self.count.most, self.kills)
        self.count.checkpoints += len(list(self.run.checkpoints.glob("step-*")))
        self.count.rows += journal_rows(self.run)["steps"].total()

    def look(self) -> None:
        """What must hold once an attempt has ended."""
        problems = left_processes(self.herd.home, [self.herd.pid, *_others(self.herd, self.recorder)])
        self.recorder.wait(10)
        self.herd.run("runs")
        problems += bad_words(self.recorder) + bad_files(self.run) + bad_owners(self.run, orphaned=self.orphaned)
        problems += bad_history(self.herd.home, known=[self.run.run_id])
        if self.light:
            problems += bad_steps(self.run, self.folder, all_of_them=False)
        for name in temporary_files(self.run):
            self.count.left[".".join(part for part in Path(name).name.split(".")[:3] if part)] += 1
        for words in problems:
            print(f"after {self.kills} kills: {words}", flush=True)
        self.count.problems += problems


def _others(herd: Herd, recorder: Command) -> list[int]:
    return [c.pid for c in herd.commands if c.code is None and c is not recorder]


def torture(run: Run, most: int, until_s: float) -> int:
    """Kill what belongs to a run, at random moments, until it cannot go on or has taken so many. Returns how many."""
    run.steps_on()
    choose = run.choose
    while run.kills < most and time.monotonic() < until_s:
        time.sleep(choose.choice((choose.uniform(0, 0.3), choose.uniform(0, 1.5))))
        run.kill(choose.choice(LIGHT_VICTIMS if run.light else VICTIMS))
        if not run.go_on():
            break
    run.end()
    return run.kills


def kill_often(kills: int, minutes: float, seed: int, *, recipes: float = 0.75, most: int = 60) -> Count:
    """All of them.

    Args:
        recipes: Which part of the kills hits runs of a recipe.
        most: How many a run takes before it is stopped and the next begins.
    """
    count, choose = Count(), random.Random(seed)
    until_s = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="lorawatch-kills-") as name:
        folder, number = Path(name), 0
        for light, wanted in ((True, round(kills * (1 - recipes))), (False, round(kills * recipes))):
            done = 0
            while done < wanted and time.monotonic() < until_s:
                number += 1
                home, out = folder / f"home-{number}", folder / f"out-{number}"
                try:
                    with Herd(home, out) as herd:
                        run = Run(herd, folder / f"made-{number}", choose, count, light=light)
                        done += torture(run, min(most, wanted - done), until_s)
                finally:  # also where somebody ends this early
                    left_processes(home, wait_s=0)
                print(f"run {number}: {run.kills} kills, {len(count.problems)} problems so far", flush=True)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30, help="no kill after so long (default: 30)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    count = kill_often(args.kills, args.minutes, args.seed)
    print(f"{'run of':<8} {'killed':<10} {'kills':>6}  while")
    for (whose, who, busy), number in sorted(count.kills.items()):
        print(f"{whose:<8} {who:<10} {number:>6}  {busy}")
    print(f"\ncommands: {dict(count.commands)}; hidden files that stayed: {dict(count.left)}")
    print(
        f"{count.kills.total()} kills, at most {count.most} of one run, seed {args.seed}: {count.rows:,} steps in journals and "
        f"history, {count.checkpoints} checkpoints read, {len(count.problems)} problems, {time.monotonic() - began:.0f} s"
    )
    return int(bool(count.problems) or count.kills.total() < args.kills)


if __name__ == "__main__":
    sys.exit(main())
