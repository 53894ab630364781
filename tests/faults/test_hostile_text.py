"""Hostile text in every argument, file and record: no command and no error lets a control sequence through to the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import command, lorawatch, the_run, wait_for
from history import T0, a_whole_run, make_run, step, write
from terminal import Terminal

from lorawatch.cli.main import COMMANDS
from lorawatch.run.directory import ENDED, Gpu, RunInfo, RunState
from lorawatch.run.records import Event, PhaseChange, RankStarted
from lorawatch.storage.ingest import finish_run
from lorawatch.text.sanitize import clean

# An OSC 52 (writes the clipboard), a colour, a reset, C1's CSI and OSC, marks that reorder, a carriage return, DEL.
EVIL = "a\x1b]52;c;Zm9v\x07b\x1b[31mc\x1bcd\x9b2Je\x9d0;t\x9cf\u202eg\u2066h\u200fi\rj\x7fk\x08l"
RAW = EVIL + "\udc9b31m\udcff"
"""With bytes that are no UTF-8, as an argument may have them."""
PAYLOAD = re.compile(
    rb"\x1b\]52|\x1b\[31mc|\x1bcd|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xaa-\xae]|\xe2\x81[\xa6-\xa9]|\x7f|\x08|(?<![\xc2-\xf4\x80-\xbf])[\x80-\xbf]"
)
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f]")

# Each command with hostile text in each of its arguments; FILE is a file of that name and content.
CASES: dict[str, list[list[str]]] = {
    "runs": [[], ["--json"], ["--all"], ["--state", RAW], ["--name", RAW], ["--tag", RAW], ["-n", RAW], [RAW], ["--" + RAW]],
    "show": [["last"], ["last", "--json"], ["last", "--recipe"], [RAW]],
    "attach": [["last", "--plain"], ["last", "--json"], [RAW]],
    "replay": [[RAW], ["last", "--speed", RAW]],
    "stop": [[RAW], ["last"]],
    "adopt": [[RAW], ["last"]],
    "chat": [[RAW, "x"], ["last", RAW], ["last", "x", "--seed", RAW]],
    "merge": [[RAW, "x"], ["last", RAW]],
    "compare": [
        ["--unfinished", "--force"], *(["--unfinished", "--force", "--format", f] for f in ("csv", "html", "markdown", "json")),
        ["--baseline", RAW], ["--tokens", RAW], ["--dataset", RAW], ["--gpu-price", RAW], ["--name", RAW], ["--sweep", RAW],
        ["-o", "FILE/x"], ["--extrapolate", RAW],
    ],
    "estimate": [[RAW], ["tiny", "--set", RAW], ["tiny", "--set", f"model.name={EVIL}"], ["tiny", "--dataset", "FILE.jsonl"]],
    "sql": [
        [f"SELECT '{EVIL}' AS \"{EVIL}\""], [RAW], ["SELECT * FROM runs"], ["SELECT * FROM runs", "--format", "csv"],
        ["SELECT * FROM runs", "--format", "json"], ["SELECT 1", "-o", "FILE/x"],
    ],
    "snapshot": [["FILE"], ["FILE/x"]],
    "import": [["FILE.csv"], ["FILE"], ["FILE", "--source", RAW], [RAW]],
    "doctor": [[RAW]],
    "supervise": [[RAW]],
    "record": [
        [RAW], ["FILE.yaml"], ["tiny", "--set", RAW], ["tiny", "--set", f"{EVIL}=1"], ["tiny", "--set", f"model.name={RAW}"],
        ["tiny", "--gpus", RAW], ["tiny", "--tag", RAW], ["tiny", "--sweep", RAW], ["--resume", RAW],
        ["--resume", "last", "--from", RAW],
        ["tiny", "--set", f"lora.{EVIL}=1"], ["--", RAW], ["--json", "--", RAW],
    ],
}  # fmt: skip
# Runs many command lines in one process, as `main` would each; a line of its own tells the exit status of each.
PROGRAM = """
import json, sys, warnings
from lorawatch import errors
from lorawatch.system import terminal
terminal.guard()
from lorawatch.cli.main import cli, run
for args in json.load(open(sys.argv[1])):
    if isinstance(args, dict):  # an error that any command might raise
        def fail(*_, **__):
            exec(args["raise"])
        before, cli.main = cli.main, fail
        code = run(["runs"])
        cli.main = before
    else:
        code = run(args)
    sys.stdout.flush()
    sys.stderr.write(f"=={code}\\n")
warnings.warn(sys.argv[2], stacklevel=1)
import logging; logging.warning(sys.argv[2])
import threading; thread = threading.Thread(target=lambda: 1 / 0, name=sys.argv[2]); thread.start(); thread.join()
sys.exit(terminal.finish(0))
"""


def evil_runs() -> None:
    """A run of which every text is hostile, as an older version or another program may have left it."""
    gpus = [Gpu(host=EVIL, gpu_index=0, gpu_uuid=EVIL, sku=EVIL, used=True)]
    recipe = {"name": EVIL, "model": {"name": EVIL}, "data": {"source": EVIL}, EVIL: EVIL}
    run = make_run("x", ranks=1, gpus=gpus, recipe=recipe, command=[EVIL, EVIL], tags=[EVIL], cwd=EVIL, sweep_id=EVIL)
    info: RunInfo = run.info()
    info.name = info.host = info.user = EVIL
    info.torch_version = info.driver_version = info.git_commit = info.lorawatch_version = EVIL
    run.write_info(info)
    started = RankStarted(at=T0 - 1, attempt=0, rank=0, local_rank=0, world_size=1, host=EVIL, pid=1, device=EVIL,
                          gpu_uuid=EVIL, steps_total=2)  # type: ignore[arg-type]  # fmt: skip
    write(run.rank_journal(0), started, PhaseChange(at=T0, attempt=0, rank=0, name=EVIL, detail=EVIL), step(1), step(2))
    write(run.events_journal, Event(at=T0, kind=EVIL, severity="error", message=EVIL, detail={EVIL: EVIL}))
    for log in (run.rank_log(0, 0), run.logs / "command.log", run.logs / "torchrun.log"):
        log.write_bytes(os.fsencode(RAW) + b"\n")
    run.write_state(RunState(state="failed", failure="signal", message=EVIL, started_at=T0, ended_at=T0 + 5))
    finish_run(run)


def evil_history() -> None:
    """Rows that another program put into the history as they are."""
    from lorawatch.storage.connection import writing

    with writing() as connection:
        for column in ("name", "message", "host", "command", "torch_version", "driver_version"):
            connection.execute(f"UPDATE runs SET {column} = ?", [EVIL])
        connection.execute("UPDATE runs SET tags = [?]", [EVIL])
        connection.execute("UPDATE events SET message = ?, kind = ?", [EVIL, EVIL])
        connection.execute("UPDATE gpus SET sku = ?", [EVIL])
        connection.execute("UPDATE run_summary SET sku = ?", [EVIL])
        connection.execute("UPDATE published_results SET note = ?, url = ?, title = ?", [EVIL, EVIL, EVIL])


@pytest.fixture
def evil_home(lorawatch_home: Path) -> Path:
    a_whole_run("whole", gpus=1, steps=6)
    evil_runs()
    assert lorawatch("compare", "--unfinished", "--force").returncode == 0  # brings the built-in tables in
    evil_history()
    return lorawatch_home


def error_cases() -> list[dict[str, str]]:
    """One of every error class, and of errors of other kinds."""
    import importlib
    import pkgutil

    import lorawatch as package
    from lorawatch.errors import LorawatchError

    with contextlib.suppress(ImportError):
        for module in pkgutil.walk_packages(package.__path__, "lorawatch."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    classes, waiting = [], [LorawatchError]
    while waiting:
        classes.append(waiting.pop())
        waiting += classes[-1].__subclasses__()
    assert len(classes) > 12
    said = [f"import {c.__module__}; raise {c.__module__}.{c.__qualname__}({EVIL!r}, hint={EVIL!r})" for c in classes]
    said += [
        f"import click; raise click.{name}({EVIL!r})"
        for name in ("UsageError", "ClickException", "BadParameter", "FileError")
    ]
    said += [
        f"raise {name}({EVIL!r})" for name in ("ValueError", "OSError", "RuntimeError", "KeyError", "FileNotFoundError")
    ]
    return [{"raise": text} for text in [*said, f"{RAW!r}.encode()"]]


def cases(folder: Path) -> list[Any]:
    """All command lines, with FILE put in."""
    evil = folder / "e\x1b]52;c;Zm9v\x07\x9b\udcff"
    for ending, text in (
        (".yaml", f'name: x\n"{EVIL.encode("unicode_escape").decode()}": "{EVIL.encode("unicode_escape").decode()}"\n'),
        (".csv", f"sku,gpu_count,tok_s,note\n{EVIL.replace(chr(13), '')},1,x{EVIL.replace(chr(13), '')},y\n"),
        (".jsonl", f'{{"{EVIL}": 1\n'),
        ("", EVIL),
    ):
        Path(f"{evil}{ending}").write_text(text, encoding="utf-8")
    assert CASES.keys() == COMMANDS.keys()
    lines = []
    for name, several in CASES.items():
        for args in several:
            words = ["--record" if name == "record" else name, *(w.replace("FILE", str(evil)) for w in args)]
            lines.append(words)
    return [*lines, [RAW], ["--" + RAW], *error_cases()]


def written(folder: Path) -> Path:
    file = folder / "cases.json"
    file.write_text(json.dumps(cases(folder)))
    return file


def judge(output: bytes, errors: bytes, number: int) -> None:
    """No control character, valid UTF-8, and no error called a defect but those that are raised as one here."""
    for text in (output, errors):
        text.decode("utf-8")
        assert not CONTROL.search(text), text[max(CONTROL.search(text).start() - 300, 0) :][:400]  # type: ignore[union-attr]
        assert not PAYLOAD.search(text), text[max(PAYLOAD.search(text).start() - 300, 0) :][:400]  # type: ignore[union-attr]
    codes = re.findall(rb"^==(\d+)$", errors, re.MULTILINE)
    assert len(codes) == number, errors[-2000:]
    assert {int(c) for c in codes} <= {0, 1, 2, 3}
    assert errors.count(b"this is a defect") == 5, errors
    assert b"Traceback" not in errors.partition(b"UserWarning")[0]


def test_no_command_and_no_error_lets_a_control_sequence_into_a_pipe(evil_home: Path, tmp_path: Path) -> None:
    file = written(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), os.fsencode(RAW)], capture_output=True, timeout=250, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    judge(done.stdout, done.stderr, len(json.loads(file.read_text())))
    assert done.returncode == 0


@pytest.mark.slow
def test_no_command_and_no_error_lets_a_control_sequence_onto_a_terminal(evil_home: Path, tmp_path: Path) -> None:
    file = written(tmp_path)
    lines = [a for a in json.loads(file.read_text()) if isinstance(a, dict) or a[0] not in ("attach", "replay", "chat")]
    file.write_text(json.dumps(lines))
    words = [sys.executable, "-c", PROGRAM, str(file), EVIL]
    with Terminal(words, dict(os.environ), size=(200, 50)) as terminal:
        terminal.process.wait(250)
        wait_for(lambda: b"ZeroDivisionError" in terminal.output())
        output = terminal.output().replace(b"\r\n", b"\n")
    # rich draws with control sequences of its own while a command runs
    drawn = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\r", b"", output)
    judge(b"", drawn, len(lines))


def test_debug_shows_where_without_control_sequences(lorawatch_home: Path) -> None:
    done = subprocess.run(
        command("--debug", "sql", f"SELECT '{EVIL}' FROM \"{EVIL}\""), capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" in done.stderr
    assert not PAYLOAD.search(done.stderr)
    assert not CONTROL.search(done.stderr)


@pytest.mark.parametrize("how", ["pipe", "terminal", "detached"])
def test_a_program_of_a_hostile_name_is_recorded_and_shown_harmlessly(
    lorawatch_home: Path, tmp_path: Path, how: str
) -> None:
    program = tmp_path / RAW
    program.symlink_to(sys.executable)
    code = f"raise ValueError({EVIL!r})"
    words = [
        *map(
            os.fsencode,
            command("--record", *(["--detach"] if how == "detached" else []), "--", str(program), "-c", code),
        ),
        b"\xff",
    ]
    if how == "terminal":
        with Terminal(words, dict(os.environ)) as terminal:  # type: ignore[arg-type]
            assert terminal.process.wait(60) == 1
            wait_for(lambda: b"run directory" in terminal.output())
            output = terminal.output().replace(b"\r\n", b"\n")
        assert b"\x1b[" in output  # the live table
    else:
        done = subprocess.run(words, capture_output=True, timeout=60, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == (0 if how == "detached" else 1), output
    assert not PAYLOAD.search(output), output
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state in ENDED)
    assert run.info().name == clean(RAW)[:64]
    assert b"defect" not in output + (run.logs / "recorder.log").read_bytes() if how == "detached" else output


def test_the_screens_let_no_control_sequence_of_a_text_through(evil_home: Path) -> None:
    with Terminal(command(), dict(os.environ), size=(160, 50)) as terminal:
        terminal.wait("1 Live")
        pages = [("]", ""), ("]", ""), ("]", ""), ("]", ""), ("]", "")]
        for keys, words in (
            ("2", "recipe"),
            ("\r", "Curves"),
            *pages,
            ("\x1b", "Filter"),
            ("3", "tags"),
            ("4", "tok/s"),
            ("1", ""),
        ):
            mark = terminal.press(keys)
            if words:
                terminal.wait(words, since=mark)
        terminal.press("q")
        assert terminal.process.wait(30) == 0
        output = terminal.output()
    for payload in (
        b"\x1b]52",
        b"\x1bcd",
        b"\xc2\x9b",
        b"\xc2\x9d",
        b"\xe2\x80\xae",
        b"\xe2\x81\xa6",
        b"\x08l",
        b"j\x7f",
    ):
        assert payload not in output, output[max(output.find(payload) - 200, 0) :][:400]
