"""Damaged histories, files that are deleted or spoiled under a run, what runs leave behind, and later attempts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fault_list import fault
from found import Trouble
from scene import Scene
from signal_script import ended

# --- the history


def _second_run_after(scene: Scene, spoil: str) -> None:
    """A first run is in the history; then the history is spoiled; then a second run is recorded."""
    history = scene.home / "history.duckdb"
    scene.light(2, 40, 0.005)
    scene.finish()
    scene.sql("SELECT 1")
    if spoil == "half":
        os.truncate(history, history.stat().st_size // 2)
    elif spoil == "notes":
        history.write_bytes(b"my precious notes\n" * 1000)
    elif spoil == "empty":
        history.write_bytes(b"")
    elif spoil == "folder":
        history.unlink()
        history.mkdir()
    elif spoil == "deleted":
        history.unlink()
    elif spoil == "log":
        Path(f"{history}.wal").write_bytes(os.urandom(5000))
    scene.start("--record", "--", *scene.light_words(2, 40, 0.005))
    scene.until(lambda: len(scene.roots()) == 2, 30, "the second run")
    assert scene.recorder is not None
    scene.found.rc = scene.recorder.wait(90)
    scene.lorawatch("runs")


for _what in ("half", "notes", "empty", "folder", "deleted", "log"):

    @fault(f"history: {_what}, before a run", "completed", rc=(0,), rows="all")
    def _(scene: Scene, what: str = _what) -> None:
        _second_run_after(scene, what)


@fault("history: cut to half while a run is recorded", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    history = scene.home / "history.duckdb"
    scene.light(2, 500, 0.02)
    scene.until(lambda: history.exists() and history.stat().st_size > 100_000, 30, "the history")
    os.truncate(history, history.stat().st_size // 2)
    scene.finish()
    scene.lorawatch("runs")


@fault("history: held by another program for 8 s at a run's end", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    history = scene.home / "history.duckdb"
    scene.light(2, 400, 0.02)
    scene.until(lambda: history.exists(), 30, "the history")
    words = f"import duckdb, time; c = duckdb.connect({str(history)!r}); print(1, flush=True); time.sleep(8)"
    for _ in range(50):  # the recorder may hold it just now
        with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as held:
            assert held.stdout is not None
            if held.stdout.readline():
                scene.finish()
                held.wait()
                return
    raise Trouble("the history could not be held")


@fault("history: its lock is replaced by a folder", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    lock = scene.home / "history.duckdb.lock"
    scene.light(2, 300, 0.01)
    scene.until(lock.exists, 30, "the lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    scene.final()
    time.sleep(1)
    with contextlib.suppress(OSError):
        lock.rmdir()
    scene.finish()
    scene.lorawatch("runs")


# --- files under a run


def _spoiled(scene: Scene, spoil: str, name: str) -> None:
    scene.light(2, 250, 0.01)
    scene.phase("training")
    path = scene.root / name
    target = scene.folder / "not-yours"
    target.write_text("untouched")
    if spoil == "deleted":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif spoil == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif spoil == "noise":
        path.write_bytes(b"\xff{" * 50)
    elif spoil == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif spoil == "a link":
        path.unlink()
        path.symlink_to(target)
    scene.finish()
    if target.read_text() != "untouched":
        scene.found.wrong.append("a link was followed, and what it names was written")
    scene.lorawatch("runs")


for _how, _name, _rows in (
    ("deleted", "state.json", "all"),
    ("noise", "state.json", "all"),
    ("a pipe", "state.json", "all"),
    ("a link", "state.json", "all"),
    ("noise", "run.json", "all"),
    ("a link", "run.json", "all"),
    ("deleted", "run.json", "all"),
    ("deleted", "journal/rank-0.jsonl", "all"),
    ("deleted", "journal/events.jsonl", "all"),
    ("cut", "journal/rank-0.jsonl", "written"),
    ("deleted", "logs", "all"),
    ("deleted", "control", "all"),
    ("deleted", "lock", "all"),
):

    @fault(f"files: {_name} is {_how} under a run", "completed", rc=(0,), rows=_rows)
    def _(scene: Scene, how: str = _how, name: str = _name) -> None:
        if name == "lock":
            scene.light(2, 250, 0.01)
            scene.phase("training")
            (scene.root / "lock").unlink(missing_ok=True)
            scene.finish()
        else:
            _spoiled(scene, how, name)


@fault("files: logs are deleted under a recipe's run", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.recipe(300)
    scene.phase("training")
    shutil.rmtree(scene.root / "logs")
    scene.finish()


@fault("files: control/ is deleted, and then a stop is asked for", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    scene.light()
    scene.phase("training")
    shutil.rmtree(scene.root / "control")
    scene.send("recorder", signal.SIGINT)
    scene.finish()


@fault("files: the run's directory is deleted under it", printed="its directory was deleted")
def _(scene: Scene) -> None:
    scene.light(2, 600, 0.02)
    scene.phase("training")
    scene.until(
        lambda: (scene.home / "history.duckdb").exists() and scene.sql("SELECT run_id FROM runs"), 30, "its row"
    )
    root, recorder = scene.root, scene.recorder
    assert recorder is not None
    shutil.rmtree(root)
    rc = recorder.wait(60)
    scene.found.printed = scene.output()
    if rc != 1:
        scene.found.wrong.append(f"rc {rc}")
    if (states := scene.sql("SELECT state FROM runs")) != [("lost",)]:
        scene.found.wrong.append(f"the history says {states}")
    scene.recorder = None  # there is no run to look at


@fault("files: the marker that the history lacks something is deleted", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.light(2, 150, 0.01)
    scene.phase("training")
    shutil.rmtree(scene.home / "open")
    scene.finish()


# --- what a command leaves behind

DAEMON = "import os, signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"


def _with_daemon(scene: Scene, end: str, ignore: bool = True) -> None:
    """A command that starts a process in a session of its own, which no SIGTERM ends, and then ends or goes on."""
    what = f"{scene.python} -c '{DAEMON}'" if ignore else "sleep 600"
    scene.start(
        "--record", "--", "sh", "-c", f"setsid {what} > /dev/null 2>&1 & echo $! > {scene.folder}/pid; sleep 1; {end}"
    )


@fault("left behind: by a command that ends well", "completed", printed="goes on", rc=(0,))
def _(scene: Scene) -> None:
    _with_daemon(scene, "exit 0", ignore=False)
    scene.finish()
    left = [p for p in scene.processes() if "sleep 600" in " ".join(p.cmdline())]
    if not left:
        scene.found.wrong.append("what a command that ended well had started was ended")
    for process in left:
        process.kill()


@fault("left behind: by a command that fails", "failed nonzero_exit", printed="outlived", rc=(1,))
def _(scene: Scene) -> None:
    _with_daemon(scene, "exit 3")
    scene.finish()


@fault("left behind: by a command that is killed", "failed signal", printed="outlived", rc=(1,))
def _(scene: Scene) -> None:
    _with_daemon(scene, "sleep 600")
    time.sleep(1.5)
    scene.send("launcher", signal.SIGKILL)
    scene.finish()


@fault("left behind: by a command that is stopped", "stopped", printed="outlived", rc=(143,))
def _(scene: Scene) -> None:
    _with_daemon(scene, "sleep 600")
    scene.until(lambda: scene.state().get("state") == "running", 30, "the command")
    time.sleep(1.5)
    scene.send("recorder", signal.SIGTERM)
    scene.finish()


# --- attempts


@fault("attempts: rank 1 is killed, torchrun starts the ranks again, and a stop is asked for", "stopped", rc=(0,))
def _(scene: Scene) -> None:
    scene.recipe(20_000, "launch.max_restarts=1")
    scene.phase("training")
    scene.send("rank 1", signal.SIGKILL)
    again = lambda: {line["attempt"] for line in scene.lines("rank-1", "step")} == {0, 1}  # noqa: E731
    scene.until(again, 60, "the second attempt")
    scene.fault()
    scene.lorawatch("stop", scene.root.name)
    scene.finish()


@fault("attempts: a run is stopped, resumed, and rank 0 is killed", "failed signal", said="rank 0 .*SIGKILL", rc=(1,))
def _(scene: Scene) -> None:
    scene.recipe(20_000)
    scene.phase("training")
    scene.lorawatch("stop", scene.root.name, "--wait")
    assert scene.recorder is not None
    scene.recorder.wait(60)
    scene.start("--record", "--resume", scene.root.name)
    scene.until(lambda: {line["attempt"] for line in scene.lines("rank-0", "step")} == {0, 1}, 60, "the second attempt")
    scene.send("rank 0", signal.SIGKILL)
    scene.finish()


@fault("several adopt a run at once", "stopped", rc=(143,), rows="all")
def _(scene: Scene) -> None:
    scene.light()
    scene.phase("training")
    scene.lose_recorder()
    several = [scene.start("adopt", scene.root.name) for _ in range(4)]
    scene.until(lambda: sum(p.poll() is None for p in several) <= 1, 30, "the adopters")
    living = [p for p in several if p.poll() is None]
    if len(living) != 1 or any(p.returncode != 2 for p in several if p not in living):
        scene.found.wrong.append(f"adopters ended with {[p.poll() for p in several]}")
    if not living or ended(scene):
        raise Trouble("no adopter took it over")
    scene.recorder = living[0]
    scene.until(lambda: (scene.state().get("recorder") or {}).get("pid") == living[0].pid, 30, "the adopter")
    scene.send("recorder", signal.SIGTERM)
    scene.finish()
