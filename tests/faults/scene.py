"""One run with one fault: started as a user would, broken at a chosen moment, and looked at from outside.

Everything is asked of the program's commands, the run's files, the history file and /proc, so that any version of lorawatch
can be put into the same scene. Each scene has its home, and every process that it starts carries the home in its environment:
that is how what is left over is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
from found import Found, Skip, Trouble, count_rows, lines_of, processes_of

HERE = Path(__file__).parent
ENDED = ("completed", "stopped", "failed", "lost")
GRACE_S = 1.0
"""For what is left over: a process that has just been killed is in the table for a moment."""

# A recipe's ranks count their optimizer steps on another file system than the home, whatever lorawatch counts.
COUNTING = """
import os, sys
if "RANK" in os.environ and "lorawatch.training.worker" in " ".join(sys.orig_argv):
    import threading, time
    def count():
        while "torch.optim.optimizer" not in sys.modules or not hasattr(
            sys.modules["torch.optim.optimizer"], "register_optimizer_step_post_hook"
        ):
            time.sleep(0.01)
        attempt = sum(int(os.environ.get(n, 0)) for n in ("LORAWATCH_FIRST_ATTEMPT", "TORCHELASTIC_RESTART_COUNT"))
        name = f"attempt_{attempt}-rank-{os.environ['RANK']}"
        file = open(os.path.join(os.environ["LIGHT_MADE"], name), "ab", buffering=0)
        sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook(lambda *_: file.write(b"."))
    threading.Thread(target=count, daemon=True).start()
"""


class Scene:
    """A home of its own, the run in it, and what is done to the run.

    Args:
        folder: An empty folder of the case's own.
        python: The interpreter that has the lorawatch which is tried.
        seed: Decides every random moment.
    """

    def __init__(self, folder: Path, python: str, seed: int) -> None:
        self.folder = folder
        self.python = python
        self.random = random.Random(seed)
        self.home = folder / "home"
        self.made = folder / "made"
        self.made.mkdir()
        self.found = Found()
        self.recorder: subprocess.Popen[bytes] | None = None
        self.fault_at: float | None = None
        self._outputs = 0
        self._mounted = False
        self._strangers: list[subprocess.Popen[bytes]] = []
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(COUNTING)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LORAWATCH_", "PYTEST_"))},
            "LORAWATCH_HOME": str(self.home),
            "LIGHT_MADE": str(self.made),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH")))),
        }

    # --- what is started

    def command(self, *args: str) -> list[str]:
        return [self.python, "-m", "lorawatch", *args]

    def lorawatch(self, *args: str, timeout: float = 90, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run one command to its end.

        Raises:
            subprocess.TimeoutExpired: It takes too long.
        """
        return subprocess.run(
            self.command(*args), env=self.env, capture_output=True, text=True, errors="replace", timeout=timeout,
            check=False, cwd=self.folder, **more,
        )  # fmt: skip

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        """Start what records the run, in a session of its own."""
        with open(self.output_file(), "wb") as file:
            self.recorder = subprocess.Popen(
                self.command(*args), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**self.env, **env},
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        return self.recorder

    def output_file(self) -> Path:
        """Where the next command that records the run prints to."""
        self._outputs += 1
        return self.folder / f"out-{self._outputs}.txt"

    def light(self, ranks: int = 2, steps: int = 100_000, step_s: float = 0.02, **env: str) -> None:
        """A run of an own command whose ranks make steps without torch."""
        self.start("--record", "--", *self.light_words(ranks, steps, step_s), **env)

    def light_words(self, ranks: int = 2, steps: int = 100_000, step_s: float = 0.02) -> list[str]:
        return [self.python, str(HERE / "light.py"), "launch", str(ranks), str(steps), str(step_s)]

    def torchrun(self, steps: int = 100_000) -> None:
        """A run of an own torchrun, as a user writes it, with such ranks."""
        agent = [self.python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self.start("--record", "--", *agent, str(HERE / "light.py"), "rank", str(steps), "0.02")

    def recipe(self, steps: int = 20_000, *settings: str, **env: str) -> None:
        """A run of a recipe: two ranks of a tiny model under torchrun."""
        words = [f"train.steps={steps}", *settings]
        self.start("--record", "tiny", *(w for s in words for w in ("--set", s)), **env)

    def stranger(self) -> subprocess.Popen[bytes]:
        """A process that has nothing to do with any run."""
        process = subprocess.Popen(["sleep", "600"], start_new_session=True, env={"PATH": os.environ["PATH"]})
        self._strangers.append(process)
        return process

    # --- what is seen

    @property
    def root(self) -> Path:
        """The latest run's directory, once it is there."""
        return Path(
            self.until(lambda: [p for p in self.roots() if (p / "journal").is_dir()], 60, "a run directory")[-1]
        )

    def roots(self) -> list[Path]:
        """The directories of all runs, latest last."""
        with contextlib.suppress(OSError):
            return sorted(p for p in (self.home / "runs").iterdir() if p.name[0] != ".")
        return []

    def state(self) -> dict[str, Any]:
        """What `state.json` says; empty where it says nothing."""
        path = self.root / "state.json"
        try:
            found = json.loads(path.read_bytes()) if path.is_file() else {}  # a pipe would be waited for
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def lines(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Complete lines of a kind in a journal of the run."""
        return lines_of(self.root / "journal" / f"{name}.jsonl", kind)

    def events(self) -> list[str]:
        return [line["kind"] for line in self.lines("events", "event")]

    def steps(self, rank: int = 0) -> int:
        return len(self.lines(f"rank-{rank}", "step"))

    def made_by(self, rank: int, attempt: int = 0) -> int:
        try:
            return (self.made / f"attempt_{attempt}-rank-{rank}").stat().st_size
        except OSError:
            return 0

    def sql(self, query: str, timeout: float = 20) -> list[tuple[Any, ...]]:
        """Ask the history file itself, when no other process holds it.

        Raises:
            Trouble: It is held, or is no database.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                with duckdb.connect(str(self.home / "history.duckdb"), read_only=True) as connection:
                    return connection.execute(query).fetchall()
            except duckdb.Error as error:
                if time.monotonic() > deadline:
                    raise Trouble(f"the history cannot be read: {error}") from error
                time.sleep(0.05)

    def until(self, condition: Callable[[], Any], timeout: float = 60, what: str = "") -> Any:
        """Wait for something; what it is.

        Raises:
            Trouble: It did not come.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise Trouble(f"{what or condition} did not come within {timeout:.0f} s; {self.output()[-300:]}")
            time.sleep(0.01)
        return value

    def output(self) -> str:
        """All that the commands which recorded the run have printed."""
        files = [self.folder / f"out-{n}.txt" for n in range(1, self._outputs + 1)]
        return "".join(f.read_text(errors="replace") for f in files)

    def processes(self) -> list[psutil.Process]:
        """Every process of this scene that lives, whoever its parent is."""
        return processes_of(self.home)

    # --- who is meant

    def pid(self, who: str) -> int:
        """The pid of `recorder`, `launcher` (an own command), `agent` (of a torchrun), or `rank N`."""
        if who == "recorder":
            assert self.recorder is not None
            return self.recorder.pid
        launcher = int(self.until(lambda: self.state().get("launcher"), 60, "a launcher")["pid"])
        if who == "launcher" or (who == "agent" and "torch.distributed.run" not in self._command_of(launcher)):
            return launcher
        if who == "agent":
            return launcher
        found = self.until(
            lambda: self._ranks(launcher).get(who.split()[1]) or self.state().get("state") in ENDED, 60, who
        )
        if found is True:
            raise Trouble(f"{who} has ended with the run")
        return int(found)

    def _command_of(self, pid: int) -> str:
        with contextlib.suppress(psutil.Error):
            return " ".join(psutil.Process(pid).cmdline())
        return ""

    def _ranks(self, launcher: int) -> dict[str, int]:
        found = {}
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(launcher).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if (rank := child.environ().get("RANK")) is not None:
                        found.setdefault(rank, child.pid)
        return found

    def phase(self, name: str) -> None:
        """Wait until the run is in a phase, and a random moment of it.

        `starting`: the launcher is there. `loading`: both ranks are. `training`: steps are made. `evaluating`, `saving`:
        rank 0 has said so last. `ending`: the last step but a few is made.
        """
        if name == "starting":
            self.pid("launcher")
        elif name == "loading":
            self.pid("rank 0"), self.pid("rank 1")
            time.sleep(self.random.uniform(0, 0.5))
        elif name == "training":
            self.until(lambda: self.steps(0) > 5 and self.steps(1) > 5, 90, "steps")
            time.sleep(self.random.uniform(0, 0.3))
        elif name == "ending":
            self.until(lambda: min(self.made_by(0), self.made_by(1)) >= 25, 90, "the last steps")
            time.sleep(self.random.uniform(0, 0.4))
        else:
            said = lambda: (self.lines("rank-0", "phase") or [{}])[-1].get("name")  # noqa: E731
            self.until(lambda: self.steps(0) > 3 and said() == name, 90, name)
            time.sleep(self.random.uniform(0, 0.05))

    # --- what is done

    def send(self, who: str, number: signal.Signals) -> None:
        """Signal a process of the run; this is the fault that the seconds count from. One that has ended gets none."""
        try:
            pid = self.pid(who)
        except Trouble:
            if self.state().get("state") in ENDED:
                return
            raise
        self.fault()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def lose_recorder(self) -> None:
        """Kill the recorder; the run goes on without one."""
        assert self.recorder is not None
        self.send("recorder", signal.SIGKILL)
        self.recorder.wait()

    def fault(self) -> None:
        """The fault has happened."""
        self.fault_at = time.monotonic()

    def fill(self) -> None:
        """Somebody else takes what the home's disk has left, to the last byte."""
        for piece in (65_536, 512):
            with contextlib.suppress(OSError), open(self.home / "ballast", "ab", buffering=0) as file:
                while True:
                    file.write(b"\0" * piece)

    def free(self) -> None:
        (self.home / "ballast").unlink(missing_ok=True)

    def small_disk(self, size: str = "24m") -> None:
        """Put the home on a disk of its own.

        Raises:
            Skip: There is no right to mount.
        """
        self.home.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(self.home)]
        if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
            raise Skip("mounts a small disk")
        self._mounted = True

    # --- the end

    def final(self, timeout: float = 90) -> dict[str, Any]:
        """Wait for the run's final state on disk, and take the time from the fault.

        Raises:
            Trouble: It does not come.
        """
        state = self.until(lambda: (s := self.state()).get("state") in ENDED and s, timeout, "the run's end")
        if self.fault_at is not None and self.found.seconds is None:
            self.found.seconds = time.monotonic() - self.fault_at
        return dict(state)

    def finish(self, timeout: float = 90) -> int:
        """Wait for the run's end and its recorder's; its exit status.

        Raises:
            Trouble: It does not end.
        """
        assert self.recorder is not None
        self.final(timeout)
        try:
            rc = self.recorder.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Trouble("the recorder goes on after the run's end") from None
        self.found.rc = rc
        return rc

    def look(self) -> Found:
        """Take down how the run ended, what is left over, and what became of its rows."""
        found = self.found
        state = self.state()
        found.state, found.failure = str(state.get("state")), state.get("failure")
        found.message = str(state.get("message") or "")
        found.printed = self.output()
        deadline = time.monotonic() + GRACE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            with contextlib.suppress(psutil.Error):
                found.orphans.append(" ".join(process.cmdline())[:80])
        for word in ("Traceback (most recent", "is a defect"):
            if word in found.printed:
                found.wrong.append(f"{word!r} was printed")
        found.wrong += [f"a stranger was ended: {p.pid}" for p in self._strangers if p.poll() is not None]
        rows = self.sql("SELECT run_id, attempt, rank, step, count(*) FROM steps GROUP BY ALL")
        count_rows(found, rows, self.roots(), self.made)
        return found

    def close(self) -> None:
        """End what is left and take the folder away."""
        for process in [*self.processes(), *self.processes()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for stranger in self._strangers:
            stranger.kill()
            stranger.wait()
        if self.recorder is not None:
            self.recorder.wait()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.home)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def scene(folder: Path, python: str, seed: int) -> Iterator[Scene]:
    """A scene that leaves nothing behind."""
    folder.mkdir(parents=True)
    made = Scene(folder, python, seed)
    try:
        yield made
    finally:
        made.close()
