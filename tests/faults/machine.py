"""Any order of commands, kills and pauses over two recorders: from wherever that leads, a command leads on.

    python tests/faults/machine.py --examples 100 --steps 12 --seed 1

A state machine of Hypothesis draws what is done: runs are started (detached, too), stopped, stopped again, adopted, resumed,
deleted and listed; recorders, launchers, ranks and the commands themselves are killed or stand still. After each step nothing
may have said a traceback; at the end every run must end by a stop and an adoption within seconds, leave no process, agree with
the history, and go when it is deleted. The exit status is 1 where something is wrong; the steps that led there are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
from found import processes_of
from herd import DELETE, Command, Herd
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from races import LIGHT, until
from soundness import bad_files, bad_history, bad_owners, bad_steps, bad_words, left_processes

from lorawatch.run.directory import ENDED, RunDir
from lorawatch.run.liveness import START_GRACE_S, liveness
from lorawatch.system.processes import ProcessId

AT_ONCE = 2
"""Runs that live at the same moment."""
_END_S = 30.0
_which = st.integers(0, 5)
_who = st.sampled_from(["recorder", "launcher", "rank"])
_victims = st.sampled_from(
    ["recorder", "recorder", "launcher", "rank", "recorder launcher", "launcher recorder", "recorder rank"]
)
_command = st.sampled_from(["adopt", "stop", "stop --now", "runs", "show", DELETE, "resume", "start"])


class Machine(RuleBasedStateMachine):
    """Runs of one home, and what a person and the machine may do to them."""

    examples = steps = 0
    keep: Path | None = None
    found: ClassVar[list[str]] = []
    """What is wrong, with the steps that led there. Nothing is raised: what the machine's moments decide no replay repeats."""

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.folder = Path(tempfile.mkdtemp(prefix="lorawatch-machine-"))
        self.home, self.made = self.folder / "home", self.folder / "made"
        self.made.mkdir()
        self.herd = Herd(self.home, self.folder / "out")
        self.known: dict[str, int] = {}  # runs, and how many of their recorders may have been killed
        self.made_by: dict[str, Path] = {}
        self.paused: list[ProcessId] = []
        self.looked_at: set[int] = set()
        self.problems: list[str] = []
        self.done: list[str] = []

    # --- what there is

    def runs_here(self) -> list[RunDir]:
        """The runs that are there, the oldest first."""
        folder = self.home / "runs"
        found = [RunDir(p) for p in sorted(folder.iterdir())] if folder.is_dir() else []
        for run in found:
            self.known.setdefault(run.run_id, 0)
        return found

    def run_at(self, index: int) -> RunDir:
        """One of them, or one that is gone or never was."""
        found = self.runs_here()
        gone = [
            RunDir(self.home / "runs" / run_id) for run_id in self.known if not (self.home / "runs" / run_id).exists()
        ]
        choices = [*found, *gone[:1]] or [RunDir(self.home / "runs" / "0000nine")]
        return choices[index % len(choices)]

    def living(self) -> list[RunDir]:
        return [run for run in self.runs_here() if run.state().state not in ENDED]

    def living_at(self, index: int) -> RunDir:
        """One of the runs that live, or any where none does."""
        found = self.living()
        return found[index % len(found)] if found else self.run_at(index)

    def do(self, *words: str, timeout: float = 1.0) -> Command:
        """Begin a command; a recorder goes on, anything else has ended afterwards, unless it waits for what stands still."""
        type(self).steps += 1
        made = self.made / str(len(self.herd.commands))
        made.mkdir()
        self.done.append(f"  lorawatch {' '.join(words).replace(sys.executable, 'python')}")
        command = self.herd.start(*words, env={"LIGHT_MADE": str(made)})
        command.wait(timeout)
        return command

    def words(self, name: str, run: RunDir) -> list[str]:
        if name == "start":
            return ["--record", "--", *LIGHT, "60", "0.02"]
        if name == "resume":
            return ["--record", "--resume", run.run_id]
        return ["runs"] if name == "runs" else [*name.split()[:1], run.run_id, *name.split()[1:]]

    def process_of(self, run: RunDir, who: str) -> ProcessId | None:
        if not run.root.is_dir():
            return None
        state = run.state()
        found = {"recorder": [state.recorder], "launcher": [state.launcher], "rank": state.ranks}[who]
        return next((p for p in found if p is not None and p.pid != self.herd.pid and p.alive()), None)

    # --- what is done

    @initialize()
    def begin_with_a_run(self) -> None:
        self.start("100000", detach=False, wait=True)

    @rule(steps=st.sampled_from(["30", "100000"]), detach=st.booleans(), wait=st.booleans())
    def start(self, steps: str, detach: bool, wait: bool) -> None:
        if len(self.living()) >= AT_ONCE:
            return
        before = {run.run_id for run in self.runs_here()}
        made = self.made / str(len(self.herd.commands))
        self.do("--record", *(["--detach"] if detach else []), "--", *LIGHT, steps, "0.02", timeout=0.3)
        if not until(lambda: {run.run_id for run in self.runs_here()} - before):
            self.problems.append("no run begins")
            return
        (run_id,) = {run.run_id for run in self.runs_here()} - before
        run = RunDir(self.home / "runs" / run_id)
        self.made_by[run_id] = made
        if wait:
            until(lambda: len(run.state().ranks) == 2 or run.state().state in ENDED, 10)

    @rule(index=_which, now=st.booleans(), twice=st.booleans())
    def stop(self, index: int, now: bool, twice: bool) -> None:
        for _ in range(1 + twice):
            self.do(*self.words("stop --now" if now else "stop", self.run_at(index)))

    @rule(index=_which)
    def adopt(self, index: int) -> None:
        self.do("adopt", self.run_at(index).run_id)

    @rule(index=_which)
    def resume(self, index: int) -> None:
        self.do(*self.words("resume", self.run_at(index)))

    @rule(index=_which)
    def delete(self, index: int) -> None:
        self.do(DELETE, self.run_at(index).run_id)

    @rule(index=_which)
    def show(self, index: int) -> None:
        self.do("show", self.run_at(index).run_id)

    @rule()
    def list_runs(self) -> None:
        over = {run.run_id: run.state() for run in self.runs_here() if self.nobody_looks_after(run)}
        command = self.do("runs", "--all", "--json", timeout=10)
        if command.code != 0 or "not in the history yet" in command.err:
            return
        rows = {row["run_id"]: row for row in (json.loads(line) for line in command.out.splitlines())}
        for run_id, state in over.items():
            row: dict[str, Any] = rows.get(run_id, {})
            now = RunDir(self.home / "runs" / run_id).state()
            if row.get("state") != now.state or now.state not in ENDED:
                self.problems.append(f"after `runs` run {run_id} is {row.get('state')} and {now.state}; it was {state}")

    def nobody_looks_after(self, run: RunDir) -> bool:
        """Whether its recorder is gone or has done with it, and no command is at work that might change it."""
        state = run.state()
        recorded = state.recorder is not None and state.recorder.alive()
        return (
            not recorded
            and liveness(run, state).kind in ("ended", "over")
            and all(command.code is not None for command in self.herd.commands)
        )

    @rule(index=_which, victims=_victims)
    def kill(self, index: int, victims: str) -> None:
        run = self.living_at(index)
        found = [
            self.process_of(run, who) for who in victims.split()
        ]  # all of them first: one that ends another hides it
        for who, victim in zip(victims.split(), found, strict=True):
            if victim is not None:
                self._kill(run, who, victim)

    def _kill(self, run: RunDir, who: str, victim: ProcessId) -> None:
        for command in self.herd.commands:
            if command.pid == victim.pid:
                command.killed = True
        self.done.append(f"  kill -9 the {who} of {run.run_id}")
        if victim.send(signal.SIGKILL) and who == "recorder":
            self.known[run.run_id] += 1
        until(lambda: not victim.alive(), 5)

    @rule(name=_command, index=_which, after_ms=st.sampled_from([0, 5, 10, 20, 40, 80, 160, 320, 640]))
    def kill_the_command(self, name: str, index: int, after_ms: int) -> None:
        """Whatever a command has done so far, it does no more."""
        run = self.run_at(index)
        if name == "start" and len(self.living()) >= AT_ONCE:
            return
        command = self.do(*self.words(name, run), timeout=after_ms / 1000)
        command.send(signal.SIGKILL)
        self.done.append(f"  kill -9 that command after {after_ms} ms")
        command.wait(5)
        for run_id in {r.run_id for r in self.runs_here()} if command.killed else ():
            self.known[run_id] += 1

    @rule(index=_which, who=_who)
    def pause(self, index: int, who: str) -> None:
        victim = self.process_of(self.living_at(index), who)
        if victim is not None and victim.send(signal.SIGSTOP):
            self.paused.append(victim)
            self.done.append(f"  SIGSTOP for the {who}")

    @rule()
    def go_on(self) -> None:
        self.done.append("  SIGCONT for all")
        while self.paused:
            self.paused.pop().send(signal.SIGCONT)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.2]))
    def time_passes(self, seconds: float) -> None:
        time.sleep(seconds)

    # --- what must hold

    @invariant()
    def nothing_bad_was_said(self) -> None:
        for number, command in enumerate(self.herd.commands):
            if command.code is not None and number not in self.looked_at:
                self.looked_at.add(number)
                self.problems += bad_words(command)

    def teardown(self) -> None:
        try:
            self.go_on()
            self.end_everything()
            self.problems += left_processes(self.home, [self.herd.pid])
            for command in self.herd.commands:
                self.problems += bad_words(command)
            self.herd.run("runs")
            for marker in (self.home / "open").glob("*"):
                if not (
                    self.home / "runs" / marker.name
                ).is_dir():  # of a killed deletion: a command takes it after a minute
                    marker.unlink()
            self.problems += bad_history(self.home, known=self.known)
            for run in self.runs_here():
                self.problems += bad_files(run) + bad_owners(run, orphaned=self.known[run.run_id])
                if run.run_id in self.made_by:
                    self.problems += bad_steps(run, self.made_by[run.run_id], all_of_them=False)
                self.problems += [f"{run}: {w}" for w in ("Traceback", "defect") if w in _log(run)]
            if self.keep is not None and self.problems:
                shutil.copytree(self.folder, self.keep / self.folder.name, symlinks=True)
            self.delete_everything()
        except Exception as error:
            self.problems.append(f"the machine itself: {type(error).__name__}: {error}")
        finally:
            if self.problems:
                words = "\n".join([*self.done, *dict.fromkeys(self.problems)])
                self.found.append(words)
                print(f"sequence {self.examples}:\n{words}", flush=True)
            self.herd.close()
            for process in processes_of(self.home):
                process.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_everything(self) -> None:
        """A stop, a second one that ends at once, an adoption where no recorder is left: within seconds all runs have ended."""
        deadline, asked = time.monotonic() + _END_S, 0.0
        while time.monotonic() < deadline:
            living = self.living()
            if not living and all(c.code is not None for c in self.herd.commands):
                return
            for run in living:
                _grow_old(run)
            if time.monotonic() - asked > 3:
                asked = time.monotonic()
                self.herd.run("runs")  # judges what has no process left
                for run in self.living():
                    self.herd.run("stop", run.run_id)
                    recorder = run.state().recorder
                    if recorder is None or not recorder.alive():
                        self.do("adopt", run.run_id)
            time.sleep(0.1)
        self.problems += [f"run {run.run_id} does not end: {run.state()}" for run in self.living()]

    def delete_everything(self) -> None:
        for run in self.runs_here():
            command = self.herd.run(DELETE, run.run_id)
            if command.code or run.root.exists():
                self.problems.append(f"{command} does not delete the run: {command.err}")
        self.problems += bad_history(self.home, known=self.known)


def _log(run: RunDir) -> str:
    """What a detached recorder said."""
    path = run.logs / "recorder.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _grow_old(run: RunDir) -> None:
    """As if a minute had passed, for a run whose start was killed before anybody recorded it."""
    if run.state().recorder is None:
        at = time.time() - START_GRACE_S - 30
        for path in (run.root / "run.json", run.root / "state.json"):
            if path.exists():
                os.utime(path, (at, at))


def run_machine(examples: int, steps: int, seed: int, keep: Path | None = None) -> list[str]:
    """Draw so many sequences. Returns what is wrong."""
    Machine.keep, Machine.found = keep, []
    wanted = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    run_state_machine_as_test(hypothesis.seed(seed)(Machine), settings=wanted)
    return Machine.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the homes in which something is wrong")
    args = parser.parse_args()
    began = time.monotonic()
    found = run_machine(args.examples, args.steps, args.seed, args.keep)
    print(
        f"{Machine.examples} sequences of up to {args.steps} steps, {Machine.steps} commands, seed {args.seed}, "
        f"{time.monotonic() - began:.0f} s: something is wrong in {len(found)}"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
