"""Hangs and full disks."""

from __future__ import annotations

import re
import signal
import time

from fault_list import fault
from scene import Scene
from signal_script import adopt

HANG_S = 6.0


# --- hangs: the seconds are those after the threshold


def _hang(scene: Scene, *who: str) -> None:
    scene.recipe(20_000, f"launch.hang_timeout_s={HANG_S}")
    scene.phase("training")
    for name in who:
        scene.send(name, signal.SIGSTOP)
    scene.finish()
    assert scene.found.seconds is not None
    scene.found.seconds = max(scene.found.seconds - HANG_S, 0.0)


@fault("hang: rank 0 is stopped", "failed hang", said="rank 0 is stopped", rc=(1,))
def _(scene: Scene) -> None:
    _hang(scene, "rank 0")


@fault("hang: rank 1 is stopped", "failed hang", said="rank 1 is stopped", rc=(1,))
def _(scene: Scene) -> None:
    _hang(scene, "rank 1")


@fault("hang: both ranks are stopped for good", "failed hang", said="stopped", rc=(1,))
def _(scene: Scene) -> None:
    _hang(scene, "rank 0", "rank 1")


@fault("hang: torchrun's agent and both ranks are stopped", "failed hang", said="stopped", rc=(1,))
def _(scene: Scene) -> None:
    _hang(scene, "agent", "rank 0", "rank 1")


@fault("hang: a stop is asked for while rank 1 is stopped, and again", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    scene.recipe()
    scene.phase("training")
    scene.send("rank 1", signal.SIGSTOP)
    time.sleep(1)
    scene.send("recorder", signal.SIGINT)
    scene.until(lambda: (scene.root / "control" / "stop").exists(), 20, "the stop")
    time.sleep(1)
    scene.send("recorder", signal.SIGINT)
    scene.finish()


@fault("hang: an own command's rank is stopped, and a stop is asked for twice", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    scene.light()
    scene.phase("training")
    scene.send("rank 1", signal.SIGSTOP)
    scene.send("recorder", signal.SIGINT)
    scene.until(lambda: (scene.root / "control" / "stop").exists(), 20, "the stop")
    scene.send("recorder", signal.SIGINT)
    scene.finish()


# --- full disks


@fault("disk: full while steps are made, then free", "completed", said="^$", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2, 400, 0.01)
    scene.phase("training")
    scene.fill()
    time.sleep(2)
    scene.free()
    scene.finish()


@fault("disk: full at the end, free in time", "completed", said="^$", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2, 200, 0.01, LORAWATCH_DISK_WAIT_S="30")
    scene.phase("training")
    scene.fill()
    scene.until(lambda: scene.made_by(0) == scene.made_by(1) == 200, 30, "the last step")
    time.sleep(1)
    scene.free()
    scene.finish()


@fault("disk: full at the end and never free", "completed", said="lines of its ranks are not recorded", rc=(0,))
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2, 200, 0.01, LORAWATCH_DISK_WAIT_S="1")
    scene.phase("training")
    scene.fill()
    state = scene.final()
    scene.free()
    scene.finish()
    said = int(re.sub(r"\D", "", str(state.get("message")).partition(" lines")[0]) or 0)
    made = scene.made_by(0) + scene.made_by(1)
    kept = scene.steps(0) + scene.steps(1)
    if said < made - kept:
        scene.found.wrong.append(f"{made - kept} steps are not recorded, of which {said} are mentioned")


@fault("disk: full when a rank is killed", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2)
    scene.phase("training")
    scene.fill()
    scene.send("rank 1", signal.SIGKILL)
    scene.final()
    scene.free()
    scene.finish()


@fault("disk: full when a stop is asked for", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2, LORAWATCH_DISK_WAIT_S="2")
    scene.phase("training")
    scene.fill()
    scene.send("recorder", signal.SIGINT)
    scene.final()
    scene.free()
    scene.finish()


@fault("disk: full when the recorder is killed, free when it is adopted", "stopped", rc=(143,), rows="all")
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.light(2)
    scene.phase("training")
    scene.fill()
    scene.lose_recorder()
    time.sleep(1)
    scene.free()
    adopt(scene)
    scene.send("recorder", signal.SIGTERM)
    scene.finish()


@fault("disk: full before anything starts", printed="(?i)no space|disk")
def _(scene: Scene) -> None:
    scene.small_disk("64k")
    scene.fill()
    done = scene.lorawatch("--record", "--", "true")
    scene.found.printed = done.stdout + done.stderr
    if done.returncode not in (1, 2) or "Traceback" in scene.found.printed:
        scene.found.wrong.append(f"rc {done.returncode}: {scene.found.printed[-300:]}")


@fault("disk: full while a recipe trains, then free", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.recipe(300, LORAWATCH_DISK_WAIT_S="60")
    scene.phase("training")
    scene.fill()
    time.sleep(2)
    scene.free()
    scene.finish()


@fault("disk: full when a recipe's adapter is saved", "failed disk_full", rc=(1,))
def _(scene: Scene) -> None:
    scene.small_disk()
    scene.recipe(300, LORAWATCH_DISK_WAIT_S="1")
    scene.phase("training")
    scene.fill()
    scene.final()
    scene.free()
    scene.finish()
