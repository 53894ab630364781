"""Real commands that begin at the same moment: one process that has imported lorawatch forks each of them.

    herd = Herd(home, folder)
    commands = [herd.prepare("adopt", run_id) for _ in range(20)]
    herd.release()                     all of them, by one barrier
    herd.run("runs", timeout=30)       one command to its end, without the cost of its imports

A command is what `python -m lorawatch` runs, in a session of its own. `delete RUN` is what the screens do to delete a run, with
its error reported as the command line reports one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DELETE = "delete"
_POLL_S = 0.01


class Command:
    """A command that was begun, or waits for its release."""

    def __init__(self, words: tuple[str, ...], base: Path, pid: int) -> None:
        self.words, self.pid = words, pid
        self._base = base
        self.killed = False
        """The caller ended it by a signal, so that its status and its words prove nothing."""

    def __repr__(self) -> str:
        return f"lorawatch {' '.join(self.words)} (pid {self.pid}, status {self.code})"

    @property
    def code(self) -> int | None:
        """Its exit status, minus a signal's number; None while it lives."""
        try:
            return int(self._base.with_suffix(".status").read_text())
        except (OSError, ValueError):
            return None

    @property
    def out(self) -> str:
        return self._read(".out")

    @property
    def err(self) -> str:
        return self._read(".err")

    def _read(self, suffix: str) -> str:
        path = self._base.with_suffix(suffix)
        return path.read_text(errors="replace") if path.exists() else ""  # killed before it had any

    def wait(self, timeout: float) -> bool:
        """Whether it ended in that time."""
        deadline = time.monotonic() + timeout
        while self.code is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def send(self, number: signal.Signals) -> None:
        """A signal to it, where it has not ended."""
        if self.code is None:
            self.killed = self.killed or number == signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Herd:
    """The process that forks the commands of one home. Use as a context manager.

    Args:
        home: The home.
        folder: Takes the commands' output; not in the home.
        env: More variables for all of them.
    """

    def __init__(self, home: Path, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.commands: list[Command] = []
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        whole = {
            **os.environ, "LORAWATCH_HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", **(env or {}),
        }  # fmt: skip
        self._log = open(folder / "herd.err", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=whole
        )

    def __enter__(self) -> Herd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, *words: str, env: Mapping[str, str] | None = None) -> Command:
        """Fork a command, which waits for `release`."""
        return self._fork(words, env, at_once=False)

    def release(self) -> None:
        """Let all prepared commands go, once each of them waits at the barrier."""
        self._ask({"release": True})

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> Command:
        """Begin a command."""
        return self._fork(words, env, at_once=True)

    def run(self, *words: str, timeout: float = 60) -> Command:
        """Run a command to its end; one that takes longer is killed, and its status is -9."""
        command = self.start(*words)
        if not command.wait(timeout):
            command.send(signal.SIGKILL)
            command.wait(5)
        return command

    def close(self) -> None:
        """End the process; commands that live go on."""
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._log.close()

    def _fork(self, words: tuple[str, ...], env: Mapping[str, str] | None, *, at_once: bool) -> Command:
        base = self._folder / f"{len(self.commands):05d}"
        answer = self._ask({"words": words, "base": str(base), "env": dict(env or {}), "at_once": at_once})
        command = Command(words, base, answer["pid"])
        self.commands.append(command)
        return command

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the herd's process ended: {(self._folder / 'herd.err').read_text()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Barrier:
    """Children wait at it until it opens: reading from a pipe whose other end only the parent holds."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._ready_read, self._ready_write = os.pipe()
        self._waiting = 0

    def join(self) -> None:
        """The parent: one more child will wait."""
        self._waiting += 1

    def wait(self) -> None:
        """A child: until it opens."""
        os.close(self._write)
        os.write(self._ready_write, b".")
        os.read(self._read, 1)

    def open(self) -> None:
        """The parent: once all wait."""
        there = 0
        while there < self._waiting:
            there += len(os.read(self._ready_read, self._waiting - there))
        for descriptor in (self._write, self._read, self._ready_read, self._ready_write):
            os.close(descriptor)

    def leave(self) -> None:
        """A child that does not wait, or not any more: no descriptor of it stays open."""
        for descriptor in (self._write, self._read, self._ready_read, self._ready_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _serve() -> dict[str, Any] | None:
    """Fork what is asked for. Returns None in the parent, at its end, and in a child what it is to run."""
    barrier = _Barrier()
    children: dict[int, Path] = {}
    waiting = b""
    while True:
        _reap(children)
        if not select.select([0], [], [], _POLL_S)[0]:
            continue
        piece = os.read(0, 1 << 16)
        if not piece:
            return None
        waiting += piece
        while b"\n" in waiting:
            line, _, waiting = waiting.partition(b"\n")
            question = json.loads(line)
            if "release" in question:
                barrier.open()
                barrier = _Barrier()
                answer = {}
            else:
                pid = os.fork()
                if not pid:
                    _settle(question, barrier)
                    return question
                if not question["at_once"]:
                    barrier.join()
                children[pid] = Path(question["base"])
                answer = {"pid": pid}
            os.write(1, json.dumps(answer).encode() + b"\n")


def _reap(children: dict[int, Path]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            path = children.pop(pid).with_suffix(".status")
            path.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(status)))
            path.with_suffix(".part").rename(path)


def _settle(question: Mapping[str, Any], barrier: _Barrier) -> None:
    """In a child: a session, streams and variables of its own; then wait where it is one of many."""
    os.setsid()
    os.environ.update(question["env"])
    base = Path(question["base"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        descriptor = os.open(base.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.close(null)
    sys.argv = ["lorawatch", *question["words"]]
    if not question["at_once"]:
        barrier.wait()
    barrier.leave()


def _delete(run_id: str) -> int:
    from lorawatch.cli.main import _report
    from lorawatch.storage.edit import delete_run

    try:
        delete_run(run_id)
    except Exception as error:
        return _report(error)
    return 0


def _main() -> int:
    import duckdb  # noqa: F401  imported once, for all of them

    import lorawatch.cli.control
    import lorawatch.cli.record
    import lorawatch.cli.resume
    import lorawatch.cli.runs
    import lorawatch.cli.summary
    import lorawatch.recorder.catching_up
    import lorawatch.recorder.recorder
    import lorawatch.recorder.resuming
    import lorawatch.storage.edit
    import lorawatch.storage.ingest
    import lorawatch.storage.queries
    import lorawatch.storage.summary  # noqa: F401
    from lorawatch.cli.main import run
    from lorawatch.system import permissions, terminal

    question = _serve()
    if question is None:
        return 0
    words = question["words"]
    terminal.guard()
    permissions.keep_private()
    if words[0] == DELETE:
        return terminal.finish(_delete(words[1]))
    return terminal.finish(run(words))


if __name__ == "__main__":
    sys.exit(_main())
