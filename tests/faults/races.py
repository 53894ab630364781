"""Many commands on the same runs at the same moment: whatever comes of it, every run stays whole and everybody is answered.

    python tests/faults/races.py --rounds 50 --processes 20 --seed 1

Each round makes one to three runs in a fresh home (a living one, one whose recorder was killed, with its launcher or without,
one that ends by itself meanwhile, a lost one, a completed one, in some rounds a lost run of a recipe with a checkpoint), lets
`adopt`, `--record --resume`, `stop`, the screens' deletion and `runs` go by one barrier, ends what lives, and looks at
everything: `soundness.py` says what must hold. Prints what came of each command; the exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from herd import DELETE, Command, Herd
from soundness import bad_files, bad_history, bad_owners, bad_steps, bad_words, left_processes, recorded

from lorawatch.run.directory import ENDED, RunDir
from lorawatch.system.processes import ProcessId

LIGHT = [sys.executable, str(Path(__file__).with_name("light.py")), "launch", "2"]
KINDS = ("orphaned", "orphaned", "leaderless", "ending", "living", "lost", "completed")
COMMANDS = ("adopt",) * 6 + ("resume",) * 5 + ("stop",) * 3 + ("stop --now",) + (DELETE,) * 4 + ("runs",) * 2
_SLOW_S = 60.0


@dataclass
class Case:
    """A run as a round begins with it."""

    kind: str
    run: RunDir
    recorder: Command | None
    made: Path

    @property
    def orphaned(self) -> int:
        """Recorders that were killed before the barrier."""
        return int(self.kind in ("orphaned", "leaderless", "ending", "lost", "resumable"))


@dataclass
class Tally:
    """What came of all rounds."""

    problems: list[str] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: int = 0


# --- the runs that a round begins with


def until(condition: Callable[[], object], timeout: float = 30.0) -> bool:
    """Wait for something; whether it came."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def run_of(home: Path, tag: str) -> RunDir:
    """The run that was started with this tag."""
    found: list[RunDir] = []

    def there() -> bool:
        runs = [RunDir(path) for path in (home / "runs").glob("*") if (path / "run.json").exists()]
        found[:] = [run for run in runs if tag in run.info().tags]
        return bool(found)

    assert until(there), f"{tag} does not begin"
    return found[0]


def begin(herd: Herd, kind: str, folder: Path) -> Case:
    """Start a light run that is to become of this kind."""
    tag = folder.name
    folder.mkdir(parents=True)
    steps = {"completed": "20", "ending": "120"}.get(kind, "100000")
    recorder = herd.start("--record", "--tag", tag, "--", *LIGHT, steps, "0.02", env={"LIGHT_MADE": str(folder)})
    return Case(kind, run_of(herd.home, tag), recorder, folder)


def bring_about(case: Case) -> None:
    """Make of a run what its kind says."""
    run, recorder = case.run, case.recorder
    assert recorder is not None
    if case.kind == "completed":
        assert recorder.wait(30), recorder
        return
    assert until(lambda: len(run.state().ranks) == 2 and run.state().step > 0), f"{run} does not step: {recorder.err}"
    state = run.state()
    if case.kind != "living":
        recorder.send(signal.SIGKILL)
        recorder.wait(5)
    victims: list[ProcessId | None] = []
    if case.kind in ("leaderless", "lost"):
        victims.append(state.launcher)
    if case.kind == "lost":
        victims += state.ranks
    for victim in victims:
        assert victim is not None
        victim.send(signal.SIGKILL)


def make_resumable(folder: Path) -> Path:
    """A lost run of a recipe that has a checkpoint, made once: its directory, to be copied into homes."""
    home = folder / "home"
    with Herd(home, folder / "out") as herd:
        settings = ("train.steps=10000", "train.checkpoint_every=10", "train.eval_every=20", "data.eval_share=0.002")
        words = [word for setting in settings for word in ("--set", setting)]
        recorder = herd.start("--record", "tiny", "--tag", "resumable", *words)
        run = run_of(home, "resumable")
        assert until(lambda: list(run.checkpoints.glob("step-*")), 90), recorder.err
        state = run.state()
        recorder.send(signal.SIGKILL)
        for process in [state.launcher, *state.ranks]:
            assert process is not None
            process.send(signal.SIGKILL)
        left_processes(home, [herd.pid])
    return run.root


def copied(home: Path, source: Path, made: Path) -> Case:
    """The run of a recipe in this home."""
    target = home / "runs" / source.name
    shutil.copytree(source, target, symlinks=True)
    run = RunDir(target)
    (home / "open").mkdir(exist_ok=True)
    (home / "open" / run.run_id).touch()
    return Case("resumable", run, None, made)


# --- a round


def words_of(name: str, run: RunDir) -> list[str]:
    """A command's words."""
    words = {
        "resume": ["--record", "--resume", run.run_id],
        "stop --now": ["stop", "--now", run.run_id],
        "runs": ["runs"],
    }
    return words.get(name, [name, run.run_id])


def one_round(folder: Path, processes: int, choose: random.Random, source: Path | None, tally: Tally) -> None:
    """One round in a home of its own."""
    home = folder / "home"
    with Herd(home, folder / "out") as herd:
        kinds = choose.sample(KINDS, choose.randint(1, 3))
        cases = [begin(herd, kind, folder / f"made-{n}") for n, kind in enumerate(kinds)]
        for case in cases:
            bring_about(case)
        if source is not None:
            cases.append(copied(home, source, folder / "made"))
        if choose.random() < 0.5:
            herd.run("runs")  # what a person has looked at is judged already
        picked = [(choose.choice(COMMANDS), choose.choice(cases)) for _ in range(processes)]
        commands = [(name, case, herd.prepare(*words_of(name, case.run))) for name, case in picked]
        herd.release()
        time.sleep(choose.choice((0.5, 1.5)))
        end_everything(herd, cases, tally)
        problems = judge(herd, cases, tally)
        for name, case, command in commands:
            outcome = "recorded" if recorded(command) else "killed" if command.killed else f"{command.code}"
            tally.outcomes[name, f"{outcome}: {reason(command)}" if command.code else outcome] += 1
            case_recorded = recorded(command) and name == "adopt"
            tally.ends["adopted", case.kind] += case_recorded
        problems += two_adopted(commands)
        for command in herd.commands:
            problems += bad_words(command)
        problems += delete_all(herd, cases)
    tally.problems += problems


def reason(command: Command) -> str:
    """Why a command was refused, without names and numbers."""
    lines = command.err.splitlines() or [""]
    words = lines[0].removeprefix("lorawatch: ")
    kept = [w for w in words.split() if not any(c.isdigit() for c in w) and "/" not in w]
    return " ".join(kept)[:90]


def two_adopted(commands: list[tuple[str, Case, Command]]) -> list[str]:
    """Runs of own commands that more than one command adopted: none of these can live twice."""
    adopters = Counter(case.run.run_id for name, case, c in commands if name == "adopt" and recorded(c))
    return [f"run {run_id} was adopted by {count} commands" for run_id, count in adopters.items() if count > 1]


def end_everything(herd: Herd, cases: list[Case], tally: Tally) -> None:
    """Stop and adopt, as a person would, until no command of the round and no run lives."""
    deadline = time.monotonic() + _SLOW_S
    while time.monotonic() < deadline:
        living = [case for case in cases if case.run.root.is_dir() and case.run.state().state not in ENDED]
        if not living and all(c.code is not None for c in herd.commands):
            return
        for case in living:
            if not case.run.requested("stop"):
                herd.run("stop", case.run.run_id)
            state = case.run.state()
            if case.run.root.is_dir() and (state.recorder is None or not state.recorder.alive()):
                herd.run("adopt", case.run.run_id)
        time.sleep(0.2)
    for case in living:
        tally.problems.append(f"run {case.run.run_id} ({case.kind}) does not end: {case.run.state()}")
    for command in herd.commands:
        if command.code is None:
            tally.problems.append(f"{command} does not end: {command.out[-500:]}")
            command.send(signal.SIGKILL)


def judge(herd: Herd, cases: list[Case], tally: Tally) -> list[str]:
    """What is wrong once everything has ended."""
    problems = left_processes(herd.home, [herd.pid])
    herd.run("runs")
    problems += bad_history(herd.home, known=[case.run.run_id for case in cases])
    for case in cases:
        if not case.run.root.is_dir():
            tally.ends[case.kind, "deleted"] += 1
            continue
        tally.ends[case.kind, case.run.state().state] += 1
        problems += bad_files(case.run) + bad_owners(case.run, orphaned=case.orphaned)
        problems += bad_steps(case.run, case.made, all_of_them=False)
        tally.rows += sum(path.stat().st_size for path in case.made.glob("attempt_*"))
    return problems


def delete_all(herd: Herd, cases: list[Case]) -> list[str]:
    """Every run that has ended can be deleted, and nothing of it stays."""
    problems = []
    for case in cases:
        command = herd.run(DELETE, case.run.run_id)
        if command.code or case.run.root.exists():
            problems.append(f"{command} does not delete the run: {command.err}")
    return problems + bad_history(herd.home, known=[case.run.run_id for case in cases])


def race(rounds: int, processes: int, seed: int, *, resumable_every: int = 4, keep: Path | None = None) -> Tally:
    """All rounds.

    Args:
        resumable_every: Each of so many rounds has the run of a recipe too; 0: none.
        keep: The folder for the homes of rounds in which something is wrong; None: they go.
    """
    choose, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="lorawatch-races-") as name:
        folder = Path(name)
        source = make_resumable(folder / "resumable") if resumable_every else None
        for number in range(rounds):
            before = len(tally.problems)
            place = folder / f"round-{number}"
            resumable = source if resumable_every and number % resumable_every == 0 else None
            try:
                one_round(place, processes, choose, resumable, tally)
            except AssertionError as error:
                tally.problems.append(f"the round itself: {error}")
            finally:  # also where somebody ends this early
                left_processes(place / "home", wait_s=0)
            for words in tally.problems[before:]:
                print(f"round {number}: {words}", flush=True)
            if keep is not None and len(tally.problems) > before:
                shutil.copytree(place, keep / place.name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--resumable-every", type=int, default=4, help="rounds with a recipe's run (default: 4; 0: none)"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the homes of rounds in which something is wrong")
    args = parser.parse_args()
    began = time.monotonic()
    tally = race(args.rounds, args.processes, args.seed, resumable_every=args.resumable_every, keep=args.keep)
    print(f"{'command':<12} {'times':>6}  outcome")
    for (name, outcome), count in sorted(tally.outcomes.items()):
        print(f"{name:<12} {count:>6}  {outcome}")
    print(f"\n{'run was':<12} {'times':>6}  and is")
    for (kind, end), count in sorted(tally.ends.items()):
        print(f"{kind:<12} {count:>6}  {end}")
    print(
        f"\n{args.rounds} rounds of {args.processes} commands, seed {args.seed}: {tally.rows:,} steps counted by ranks, "
        f"{len(tally.problems)} problems, {time.monotonic() - began:.0f} s"
    )
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
