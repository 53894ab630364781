"""Forged journals, planted links, hostile text and hostile recipes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

from fault_list import fault
from found import Skip, Trouble
from scene import Scene

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
OSC = "\x1b]52;c;Zm9v\x07"

# A rank that writes whatever it likes of itself.
FORGED = """
import os, sys, time
from pathlib import Path
path = Path(os.environ["LORAWATCH_RUN_DIR"]) / "journal" / "rank-0.jsonl"
path.parent.mkdir(exist_ok=True)
path.write_text("".join(line + "\\n" for line in sys.argv[2:]))
time.sleep(float(sys.argv[1]))
"""


def _forge(scene: Scene, seconds: float, *lines: dict[str, object]) -> None:
    words = [json.dumps(line) for line in lines]
    scene.start("--record", "--", scene.python, "-c", FORGED, str(seconds), *words)


def _rank_started(pid: int, **more: object) -> dict[str, object]:
    line = {"t": "rank_started", "at": time.time(), "attempt": 0, "rank": 0, "local_rank": 0, "world_size": 1}
    return {**line, "host": "h", "pid": pid, "device": "cpu", **more}


def _end_at_once(scene: Scene) -> None:
    scene.send("recorder", signal.SIGINT)
    scene.until(lambda: (scene.root / "control" / "stop").exists(), 20, "the stop")
    scene.send("recorder", signal.SIGINT)
    scene.finish()


def _seen(scene: Scene) -> None:
    """Wait until the recorder must have read the forged line."""
    scene.until(lambda: (scene.root / "journal" / "rank-0.jsonl").exists(), 30, "the forged line")
    time.sleep(2.5)


# --- other people's processes


@fault("forged: a rank's line has a stranger's bare pid", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    _forge(scene, 60, _rank_started(scene.stranger().pid))
    _seen(scene)
    _end_at_once(scene)


@fault("forged: a rank's line has a stranger's whole identity", "stopped", rc=(130,))
def _(scene: Scene) -> None:
    pid = scene.stranger().pid
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    process = {
        "pid": pid, "started": int(stat[19]), "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": Path("/proc/self/ns/pid").stat().st_ino, "host": os.uname().nodename,
    }  # fmt: skip
    _forge(scene, 60, _rank_started(pid, process=process))
    _seen(scene)
    _end_at_once(scene)


@fault("forged: a stranger's pid, and the command ends by itself", "completed", rc=(0,))
def _(scene: Scene) -> None:
    _forge(scene, 2.5, _rank_started(scene.stranger().pid))
    scene.finish()


@fault("container: a rank in a PID namespace has a stranger's number", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode:
        raise Skip("makes a PID namespace")
    light = scene.light_words()[1]
    words = (
        "import subprocess, sys\n"
        f"open('/proc/sys/kernel/ns_last_pid', 'w').write('{scene.stranger().pid - 1}')\n"
        f"p = subprocess.Popen([{scene.python!r}, {light!r}, 'rank', '60', '0.02'])\n"
        "sys.exit(p.wait())\n"
    )
    scene.start("--record", "--", *CONTAINER, scene.python, "-c", words)
    scene.finish()


@fault("forged: world_size of a billion", "completed", rc=(0,))
def _(scene: Scene) -> None:
    _forge(scene, 1, _rank_started(1, world_size=1_000_000_000))
    scene.finish(30)


@fault("forged: rows with rank -5 and tokens -9", "completed", rc=(0,))
def _(scene: Scene) -> None:
    line = {"t": "step", "attempt": 0, "rank": 0, "step": 1, "ended_at": 1.0, "duration_s": 0.1, "tokens": 1}
    line |= {"nonpad_tokens": 1, "label_tokens": 1, "loss": 1.0, "phase": "train"}
    _forge(scene, 1, line | {"rank": -5}, line | {"step": 2, "tokens": -9})
    scene.finish()
    if rows := scene.sql("SELECT rank, tokens FROM steps"):
        scene.found.wrong.append(f"taken: {rows}")
    (scene.root / "journal" / "rank-0.jsonl").unlink()  # not held against the history: none of its rows is one


# --- planted files


def _as_somebody_else(code: str, *args: str) -> None:
    if os.geteuid():
        raise Skip("acts as a second user")
    words = ["python3", "-c", f"import os, sys; os.setgid(65534); os.setuid(65534)\n{code}", *args]
    if subprocess.run(words, check=False, env={"PATH": "/usr/bin:/bin"}).returncode:
        raise Trouble("the second user could not plant it")


def _shared(scene: Scene) -> None:
    """A run whose directory a group may write to, on purpose."""
    scene.light(2, 250, 0.01)
    scene.phase("training")
    for path in (scene.home, scene.home / "runs", scene.root, scene.root / "control"):
        path.chmod(0o777)
    for path in (scene.folder, scene.folder.parent):
        path.chmod(0o755)


@fault("planted: a second user's link as control/stop", "stopped", rows="all")
def _(scene: Scene) -> None:
    target = scene.folder / "root-only"
    target.write_text("untouched")
    _shared(scene)
    _as_somebody_else("os.symlink(sys.argv[1], sys.argv[2])", str(target), str(scene.root / "control" / "stop"))
    scene.finish()
    if target.read_text() != "untouched":
        scene.found.wrong.append("the link was followed, and what it names was written")


@fault("planted: a second user's pipe as control/checkpoint", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    _shared(scene)
    _as_somebody_else("os.mkfifo(sys.argv[1])", str(scene.root / "control" / "checkpoint"))
    scene.finish()


@fault("planted: a second user's links where temporary files are written", "completed", rc=(0,), rows="all")
def _(scene: Scene) -> None:
    target = scene.folder / "root-only"
    target.write_text("untouched")
    _shared(scene)
    names = [f".{name}.{pid}.tmp" for name in ("state.json", "run.json") for pid in (scene.pid("recorder"),)]
    names += [f"{name}.{scene.pid('recorder')}.tmp" for name in ("state.json", "run.json")]
    for name in names:
        _as_somebody_else("os.symlink(sys.argv[1], sys.argv[2])", str(target), str(scene.root / name))
    scene.finish()
    if target.read_text() != "untouched":
        scene.found.wrong.append("a planted link was followed")


@fault("planted: a second user's link as a rank's journal, before the rank", rows="written")
def _(scene: Scene) -> None:
    target = scene.folder / "root-only"
    target.write_text("untouched\n")
    _shared(scene)
    (scene.root / "journal").chmod(0o777)
    link = scene.root / "journal" / "rank-7.jsonl"
    _as_somebody_else("os.symlink(sys.argv[1], sys.argv[2])", str(target), str(link))
    scene.finish()
    link.unlink()
    if target.read_text() != "untouched\n":
        scene.found.wrong.append("a planted link was followed")


# --- hostile text


@fault("hostile text: through import into CSV and HTML")
def _(scene: Scene) -> None:
    cells = [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1+1",
        "<script>alert(1)</script>",
        "<img src=x onerror=a()>",
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["sku", "gpu_count", "tok_s", "source", "note"])
    for number, text in enumerate(cells):
        writer.writerow([f"{text}{number}", 1, 1000 + number, text, text])
    (scene.folder / "table.csv").write_text(buffer.getvalue(), newline="")
    brought = scene.lorawatch("import", "table.csv")
    table, page = (scene.lorawatch("compare", "--force", "--format", form) for form in ("csv", "html"))
    if brought.returncode or table.returncode or page.returncode:
        raise Trouble(brought.stderr + table.stderr + page.stderr)
    for row in csv.reader(io.StringIO(table.stdout)):
        for cell in row:
            if cell.lstrip("\t\r\n ")[:1] in tuple("=+-@") and not re.fullmatch(r"-?[0-9.e+-]+", cell):
                scene.found.wrong.append(f"a cell that a spreadsheet computes: {cell!r}")
    if re.search(r"<script>alert|<img src=x", page.stdout):
        scene.found.wrong.append("a tag came into the page")


@fault("hostile text: a recipe's key on a terminal")
def _(scene: Scene) -> None:
    (scene.folder / "r.yaml").write_text(
        'name: x\nmodel: {name: m}\n"' + OSC.replace("\x1b", "\\e").replace("\x07", "\\a") + '": 1\n'
    )
    head, tail = pty.openpty()
    with subprocess.Popen(
        scene.command("--record", "r.yaml"), stdin=tail, stdout=tail, stderr=tail, env=scene.env, cwd=scene.folder
    ) as process:
        os.close(tail)
        seen = b""
        while True:
            try:
                piece = os.read(head, 65_536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(head)
        rc = process.wait(30)
    if b"\x1b]52" in seen or rc != 2:
        scene.found.wrong.append(f"rc {rc}, the terminal got {seen[-200:]!r}")


@fault("hostile text: what a rank prints, to a terminal", "failed nonzero_exit", rc=(1,))
def _(scene: Scene) -> None:
    scene.start("--record", "--", "sh", "-c", f"printf 'boom {OSC}\\n'; exit 3")
    scene.finish()
    shown = scene.lorawatch("show", "last")
    if OSC in shown.stdout + scene.output():
        scene.found.wrong.append("a control sequence was shown")


@fault("a home whose path is no UTF-8")
def _(scene: Scene) -> None:
    home = os.fsencode(scene.folder) + b"/h\xff\xfe"
    Path(os.fsdecode(home)).mkdir()
    env = {**os.environb, b"LORAWATCH_HOME": home}
    for args in (("runs",), ("--record", "--", "true"), ("doctor",)):
        done = subprocess.run(
            scene.command(*args), env=env, capture_output=True, check=False, timeout=60, cwd=scene.folder
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if "Traceback" in said or "defect" in said or (args[0] != "doctor" and done.returncode not in (0, 2)):
            scene.found.wrong.append(f"{args[0]}: rc {done.returncode}: {said[-200:]}")


# --- hostile recipes


def _refused(scene: Scene, content: str, most_s: float = 20.0) -> None:
    (scene.folder / "r.yaml").write_text(content)
    began = time.monotonic()
    done = scene.lorawatch("--record", "r.yaml", timeout=120)
    took = time.monotonic() - began
    if done.returncode != 2 or "Traceback" in done.stderr or "defect" in done.stderr or took > most_s:
        scene.found.wrong.append(f"rc {done.returncode} after {took:.0f} s: {done.stderr[-200:]}")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
)


@fault("recipe: a YAML bomb, on the command line")
def _(scene: Scene) -> None:
    _refused(scene, BOMB)


@fault("recipe: 100,000 nested brackets")
def _(scene: Scene) -> None:
    _refused(scene, "name: " + "[" * 100_000)


@fault("recipe: 100 MB")
def _(scene: Scene) -> None:
    _refused(scene, "name: x\n" + "# " + "x" * 100_000_000)


@fault("recipe: a YAML bomb in Launch")
def _(scene: Scene) -> None:
    (scene.folder / "bomb.yaml").write_text(BOMB)
    words = [scene.python, str(Path(__file__).with_name("launch_bomb.py")), str(scene.folder / "bomb.yaml")]
    done = subprocess.run(
        words, env=scene.env, capture_output=True, text=True, check=False, timeout=90, cwd=scene.folder
    )
    if done.returncode:
        scene.found.wrong.append(f"rc {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
