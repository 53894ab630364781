"""What users type, ask for, set and share: secrets, umasks, closed streams, limits, empty words, another host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

from fault_list import fault
from found import Skip, Trouble
from scene import Scene

# --- what is written, and what is asked


@fault("secret: on an own command's line", "completed", rc=(0,))
def _(scene: Scene) -> None:
    secret = "hf_" + "Ab3" * 12
    got = scene.folder / "got"
    scene.start(
        "--record", "--", "sh", "-c", f'sleep 1; echo "$2" > {got}', "sh", "--token", secret, MY_SECRET="s3cr3t-env"
    )
    scene.finish()
    scene.lorawatch("snapshot", str(scene.home / "snapshot.duckdb"))
    if got.read_text().strip() != secret:
        scene.found.wrong.append("the command did not receive its secret")
    for path in scene.home.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if secret.encode() in content or b"s3cr3t-env" in content:
            scene.found.wrong.append(f"the secret is in {path.name}")


@fault("umask 000: nothing of a home is writable by others", "completed", rc=(0,))
def _(scene: Scene) -> None:
    before = os.umask(0)
    try:
        scene.light(1, 60, 0.01)
    finally:
        os.umask(before)
    scene.finish()
    loose = [
        str(p.relative_to(scene.home)) for p in scene.home.rglob("*") if p.stat().st_mode & 0o077 and not p.is_symlink()
    ]
    if loose:
        scene.found.wrong.append(f"others may read or write {', '.join(loose[:5])}")


@fault("streams: standard output and error are closed", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    light = " ".join(scene.light_words(2, 60, 0.01))
    scene.env["COMMAND"] = f"exec {scene.python} -m lorawatch --record -- {light} >&- 2>&-"
    scene.recorder = subprocess.Popen(
        ["sh", "-c", scene.env["COMMAND"]], env=scene.env, cwd=scene.folder, start_new_session=True
    )
    scene.finish()


@fault("sql: a question of two hundred million rows")
def _(scene: Scene) -> None:
    scene.light(2, 200, 0.001)
    scene.finish()
    scene.recorder = None
    words = "SELECT a.*, b.* FROM steps a, steps b, range(1000)"
    with subprocess.Popen(
        scene.command("sql", words), env=scene.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        most, deadline = 0, time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            most = max(most, sum(_rss(p.pid) for p in scene.processes()))
            time.sleep(0.05)
            if most > 4 << 30:
                break
        process.kill()
        assert process.stderr is not None
        said = process.stderr.read()
    if most > 3 << 30 or "Traceback" in said or "defect" in said:
        scene.found.wrong.append(f"{most / 2**30:.1f} GiB; {said[-200:]}")


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@fault("a recipe beside random.py, queue.py and yaml.py of the user's", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    for name in ("random", "queue", "yaml", "torch"):
        (scene.folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    scene.env["PYTHONSAFEPATH"] = "1"  # for this test's own `python -m`; the program on PATH has no folder before it
    scene.recipe(20)
    scene.finish()


@fault('an empty word: `stop ""` ends no run', "stopped", rc=(130,), rows="all")
def _(scene: Scene) -> None:
    scene.light()
    scene.phase("training")
    if scene.lorawatch("stop", "").returncode != 2 or (scene.root / "control" / "stop").exists():
        scene.found.wrong.append("an empty word was taken for the only run")
    scene.send("recorder", signal.SIGINT)
    scene.finish()


@fault("a run is deleted while its ranks live without a recorder", "stopped", rc=(143,), rows="all")
def _(scene: Scene) -> None:
    scene.light()
    scene.phase("training")
    scene.lose_recorder()
    code = "import sys; from lorawatch.storage.edit import delete_run; delete_run(sys.argv[1])"
    subprocess.run(
        [scene.python, "-c", code, scene.root.name], env=scene.env, check=False, capture_output=True, timeout=60
    )
    if not scene.roots():
        scene.found.wrong.append("deleted, while its ranks live")
        raise Trouble("the run is gone")
    scene.start("adopt", scene.root.name)
    scene.until(lambda: (scene.state().get("recorder") or {}).get("pid") == scene.pid("recorder"), 30, "the adopter")
    scene.send("recorder", signal.SIGTERM)
    scene.finish()


@fault("a clock that is set back", "completed", rc=(0,))
def _(scene: Scene) -> None:
    with open(scene.folder / "site" / "sitecustomize.py", "a") as file:
        file.write(
            "\nimport sys, time\nif '--record' in sys.argv:\n"
            "    real, began = time.time, time.monotonic()\n"
            "    time.time = lambda: real() - (3600 if time.monotonic() - began > 2 else 0)\n"
        )
    scene.start("--record", "--", "sleep", "4")
    scene.finish()
    if re.search(r"duration\s+-", scene.output()):
        scene.found.wrong.append("a negative duration")


@fault("ranks: only rank 0 reports", "stopped", said="nothing was saved", printed="does not report", rc=(130,))
def _(scene: Scene) -> None:
    scene.light(2, 100_000, 0.02, LIGHT_REPORTS="0")
    scene.until(lambda: scene.steps(0) > 20, 30, "steps")
    scene.until(lambda: "ranks_missing" in scene.events(), 30, "the warning")
    scene.send("recorder", signal.SIGINT)
    scene.final()
    scene.found.seconds = None  # bounded by how long the silent rank is waited for, not by 5 s
    scene.finish()
    scene.found.made = scene.found.kept = 0


LIMITED = ("failed nonzero_exit", "failed python_exception", "failed signal")


@fault("limits: a recipe's torchrun with 24 file descriptors", *LIMITED, rc=(1,))
def _(scene: Scene) -> None:
    _limited(scene, "RLIMIT_NOFILE", 24)


@fault("limits: a recipe's torchrun with 400 MB of address space", *LIMITED, rc=(1,))
def _(scene: Scene) -> None:
    _limited(scene, "RLIMIT_AS", 400 << 20)


def _limited(scene: Scene, what: str, value: int) -> None:
    """The limit is torchrun's and its ranks'."""
    with open(scene.folder / "site" / "sitecustomize.py", "a") as file:
        file.write(
            "\nimport resource, sys\nif 'torch.distributed.run' in sys.orig_argv:\n"
            f"    resource.setrlimit(resource.{what}, ({value}, {value}))\n"
        )
    scene.recipe(50)
    scene.finish()
    message = str(scene.state().get("message"))
    if "signal" in message and "SIGABRT" not in message:  # what C++ does with an uncaught exception
        scene.found.wrong.append("an exit is called a signal")


# --- another host


def _other_host(scene: Scene, *args: str) -> subprocess.CompletedProcess[str]:
    boot = scene.folder / "boot_id"
    if not boot.exists():
        boot.write_text(f"{uuid.uuid4()}\n")
    words = f'hostname n2 && mount --bind {boot} /proc/sys/kernel/random/boot_id && exec "$@"'
    words_ = ["unshare", "--mount", "--uts", "sh", "-c", words, "sh", *args]
    return subprocess.run(
        words_, env=scene.env, capture_output=True, text=True, check=False, timeout=90, cwd=scene.folder
    )


@fault("another host: looks, adopts, resumes and deletes a living run", "stopped", rc=(143,), rows="all")
def _(scene: Scene) -> None:
    if _other_host(scene, "true").returncode:
        raise Skip("makes namespaces")
    scene.light()
    scene.phase("training")
    code = "import sys; from lorawatch.storage.edit import delete_run; delete_run(sys.argv[1])"
    name = scene.root.name
    for args in (("runs",), ("show", name), ("adopt", name), ("--record", "--resume", name)):
        _other_host(scene, *scene.command(*args))
    _other_host(scene, scene.python, "-c", code, name)
    if not scene.roots():
        raise Trouble("another host deleted a living run")
    if scene.state().get("state") != "running" or not list((scene.home / "open").glob("*")):
        scene.found.wrong.append(f"another host made it {scene.state().get('state')}")
    scene.send("recorder", signal.SIGTERM)
    scene.finish()


@fault("another host: asks a living run to stop", "stopped", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    if _other_host(scene, "true").returncode:
        raise Skip("makes namespaces")
    scene.light()
    scene.phase("training")
    scene.fault()
    _other_host(scene, *scene.command("stop", scene.root.name))
    scene.finish()
