"""Processes that are not the run's, or are and hide; what stands in the place of a run's files; ends that no recorder saw."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from fault_list import fault
from found import Skip
from scene import Scene
from signal_script import adopt

# Daemonizes when a file is there: two forks and a session of its own, so that nothing but the environment says whose it is.
DAEMON = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "171"])
    os._exit(0)
os.wait()
time.sleep(600)
"""


def _through_shell(scene: Scene, script: str) -> None:
    """Record what a shell script ends in: the recorder takes the shell's place and has its children."""
    words = [*scene.command("--record", "--"), "bash", "-c", "sleep 1; exit 3"]
    with open(scene.output_file(), "wb") as file:
        scene.recorder = subprocess.Popen(
            ["bash", "-c", script, "bash", *words], env=scene.env, stdout=file, stderr=file, cwd=scene.folder,
            start_new_session=True,
        )  # fmt: skip


def _survives(scene: Scene, words: str) -> None:
    scene.finish()
    found = [p for p in scene.processes() if words in " ".join(p.cmdline())]
    if not found:
        scene.found.wrong.append(f"{words}, which the run did not start, was ended")
    for process in found:
        process.kill()


@fault("strangers: a child of the shell whose place the recorder took", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    _through_shell(scene, 'sleep 377 & exec "$@"')
    _survives(scene, "sleep 377")


@fault("strangers: a child of that shell's child, which ends meanwhile", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    _through_shell(scene, 'bash -c "sleep 378 & sleep 1.5" & exec "$@"')
    _survives(scene, "sleep 378")


@fault(
    "left behind: by a command whose recorder had a child before", "failed nonzero_exit", printed="outlived", rc=(1,)
)
def _(scene: Scene) -> None:
    words = [*scene.command("--record", "--"), "bash", "-c", "setsid sleep 379 & sleep 1; exit 3"]
    with open(scene.output_file(), "wb") as file:
        scene.recorder = subprocess.Popen(
            ["bash", "-c", 'sleep 380 & exec "$@"', "bash", *words], env=scene.env, stdout=file, stderr=file,
            cwd=scene.folder, start_new_session=True,
        )  # fmt: skip
    _survives(scene, "sleep 380")


@fault("left behind: a daemon of an adopted run, and a stop at once", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    go = scene.folder / "go"
    scene.start("--record", "--", scene.python, "-c", DAEMON, str(go))
    scene.until(lambda: scene.state().get("state") == "running", 30, "the command")
    scene.lose_recorder()
    adopt(scene)
    go.touch()
    scene.until(lambda: any("sleep 171" in " ".join(p.cmdline()) for p in scene.processes()), 20, "the daemon")
    time.sleep(0.5)
    for _ in range(2):
        scene.send("recorder", signal.SIGINT)
        scene.until(lambda: (scene.root / "control" / "stop").exists() or scene.state().get("ended_at"), 20, "the stop")
    scene.finish()


@fault("streams: SIGCHLD is ignored from the start", "failed nonzero_exit", said="status 3", rc=(1,))
def _(scene: Scene) -> None:
    _through_shell(
        scene,
        "exec python3 -c 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        ' os.execv(sys.argv[1], sys.argv[1:])\' "$@"',
    )
    scene.finish()


# --- what stands in the place of a run's files


def _replaced(scene: Scene, script: str, ends: str = "sleep 1; exit 3") -> None:
    scene.start("--record", "--", "bash", "-c", f"cd $LORAWATCH_RUN_DIR; {script}; {ends}")
    scene.finish(60)


@fault("files: logs/command.log is a pipe", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    _replaced(scene, "rm logs/command.log; mkfifo logs/command.log")


@fault("files: logs/command.log is /dev/zero", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    _replaced(scene, "rm logs/command.log; ln -s /dev/zero logs/command.log")


@fault("files: state.json is a folder", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    _replaced(scene, "rm state.json; mkdir state.json")


@fault("files: journal/events.jsonl is a link", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    target = scene.folder / "not-yours"
    target.write_text("untouched")
    _replaced(scene, f"rm journal/events.jsonl; ln -s {target} journal/events.jsonl", "sleep 3; exit 3")
    if target.read_text() != "untouched":
        scene.found.wrong.append("lines were written into what the link names")


# --- ends that no recorder saw


def _alone(scene: Scene) -> int:
    """A recipe's run that goes on without a recorder. Returns rank 0's steps a moment later."""
    scene.recipe()
    scene.phase("training")
    scene.lose_recorder()
    time.sleep(3)
    listed = scene.lorawatch("runs")
    if "has lost its recorder" not in listed.stderr or "lorawatch adopt" not in listed.stderr:
        scene.found.wrong.append(f"runs does not say that the recorder is lost: {listed.stderr!r}")
    scene.fault_at = None
    return scene.steps(0)


def _stopped_alone(scene: Scene) -> int:
    """Such a run is stopped and has ended. Returns rank 0's steps before that."""
    steps = _alone(scene)
    scene.lorawatch("stop", scene.root.name)
    pid = scene.state()["launcher"]["pid"]
    scene.until(lambda: not os.path.exists(f"/proc/{pid}"), 30, "the agent's end")  # noqa: PTH110
    return steps


@fault("unseen: stopped without a recorder, and then looked at", "stopped", said=r"together at step \d+", rows="all")
def _(scene: Scene) -> None:
    steps = _stopped_alone(scene)
    time.sleep(2)
    scene.lorawatch("runs")
    _judge_unseen(scene, steps)


@fault(
    "unseen: stopped without a recorder, and then adopted", "stopped", said=r"together at step \d+", rc=(0,), rows="all"
)
def _(scene: Scene) -> None:
    steps = _stopped_alone(scene)
    time.sleep(4)
    scene.fault()
    scene.start("adopt", scene.root.name)
    scene.finish()
    if "the ranks stop together at the next step" in scene.output():
        scene.found.wrong.append("ranks that have ended are said to be asked")
    _judge_unseen(scene, steps)


def _judge_unseen(scene: Scene, steps: int) -> None:
    """The step, the end and the duration are those of the ranks' last lines."""
    state = scene.final()
    last = max(line["step"] for line in scene.lines("rank-0", "step"))
    ended = max(line["at"] for line in scene.lines("rank-0", "phase"))
    if state["step"] != last or last < steps:
        scene.found.wrong.append(f"step {state['step']}, and the journal has {last}")
    if abs(state["ended_at"] - ended) > 2 or abs(state["elapsed_s"] - (ended - state["started_at"])) > 2.5:
        scene.found.wrong.append(f"ended {state['ended_at'] - ended:.1f} s late, after {state['elapsed_s']:.1f} s")


@fault("history: gone, and then asked", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.light(2, 60, 0.01)
    scene.finish()
    (scene.home / "history.duckdb").unlink()
    for args in (("runs",), ("show", "last"), ("sql", "SELECT count(*) FROM steps")):
        said = scene.lorawatch(*args)
        if said.returncode or "no run yet" in said.stderr:
            scene.found.wrong.append(f"{args[0]}: {said.stderr[-200:]}")


@fault("files: the directory of a run that was deleted is made again by its ranks")
def _(scene: Scene) -> None:
    scene.recipe(400)
    scene.phase("training")
    scene.until(
        lambda: (scene.home / "history.duckdb").exists() and scene.sql("SELECT run_id FROM runs"), 30, "its row"
    )
    root, recorder = scene.root, scene.recorder
    assert recorder is not None
    shutil.rmtree(root, ignore_errors=True)
    recorder.wait(60)
    for marker in (scene.home / "open").glob("*"):
        os.utime(marker, (1.0, 1.0))
    said = [scene.lorawatch("runs").stderr for _ in range(2)]
    if "Errno" in said[1]:
        scene.found.wrong.append(said[1])
    with contextlib.suppress(OSError):
        shutil.rmtree(root)
    scene.recorder = None


# --- homes and secrets


@fault("a home with a question mark")
def _(scene: Scene) -> None:
    env = {**scene.env, "LORAWATCH_HOME": str(scene.folder / "q?q")}
    done = subprocess.run(
        scene.command("runs"), env=env, cwd=scene.folder, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 2 or "question mark" not in done.stderr:
        scene.found.wrong.append(f"rc {done.returncode}: {done.stderr}")


@fault("secret: in what a failing command prints last", "failed python_exception", rc=(1,))
def _(scene: Scene) -> None:
    code = "import sys; raise ValueError('cannot log in with ' + sys.argv[2])"
    scene.start("--record", "--", sys.executable, "-c", code, "--password", "S3cr3tV4lue9x")
    scene.finish()
    if re.search("S3cr3t", scene.output()):
        scene.found.wrong.append("it is shown")


@fault("left behind: a leftover with a secret on its line", "failed nonzero_exit", printed="outlived", rc=(1,))
def _(scene: Scene) -> None:
    if not shutil.which("setsid"):
        raise Skip("needs setsid")
    inner = f"{sys.executable} -c 'import time; time.sleep(99)' --token hf_AbAbAbAbAbAbAbAbAbAb"
    scene.start("--record", "--", "bash", "-c", f"setsid {inner} & sleep 1; exit 3")
    scene.finish()
    if "hf_AbAb" in scene.output():
        scene.found.wrong.append("its secret is shown")
