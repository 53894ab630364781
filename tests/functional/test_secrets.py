"""Secrets on an own command's line: the command receives them to the byte, and nothing that is kept or shown has them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from helpers import command, lorawatch, sql, the_run, wait_for

from lorawatch.errors import LorawatchError
from lorawatch.launch.handover import receive, send
from lorawatch.recorder.catching_up import catch_up
from lorawatch.run.directory import ENDED, RunDir, RunInfo
from lorawatch.screens.runs.pages import recipe_lines
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.queries import run_figures

TOKEN = "hf_" + "SoSecret" * 4
VALUES = [TOKEN, "plainS3cret", "p@ssW0rd with words", "in-a-url-S3cret", "json-S3cret", "shell-S3cret"]
TYPED = [
    b"--token", TOKEN.encode(), b"--api-key=plainS3cret", b"--password", b"p@ssW0rd with words",
    b"https://me:in-a-url-S3cret@host/x", b'{"hub": {"secret": "json-S3cret"}}', b"env HF_TOKEN=shell-S3cret true",
    b"", b" two  words ", b"a\nb", b"\xff\xfe caf\xe9", "é漢".encode(), b"--steps", b"3", b"*", b"$HOME", b"--",
    b"--debug", b"--record",
]  # fmt: skip
SHOWN = [
    ["show", "last"], ["show", "last", "--json"], ["runs", "--json"], ["attach", "last", "--plain"],
    ["sql", "SELECT * FROM runs", "--format", "json"], ["compare", "--unfinished", "--force"],
]  # fmt: skip
# Writes down what it received and its recorder's command line, outside of the home.
RECEIVED = """
import os, sys
with open(sys.argv[1] + ".recorder", "wb") as file:
    file.write(open(f"/proc/{os.getppid()}/cmdline", "rb").read())
with open(sys.argv[1], "wb") as file:
    file.write(b"\\0".join(map(os.fsencode, sys.argv[2:])))
"""


def record(program: Path, received: Path, *more: str, arguments: list[bytes], env: dict[str, str] | None = None) -> str:
    """Record a command that writes down its arguments. Returns all that lorawatch said."""
    words = [
        *map(os.fsencode, command("--record", *more, "--", sys.executable, str(program), str(received))),
        *arguments,
    ]
    done = subprocess.run(words, capture_output=True, timeout=120, env={**os.environ, **(env or {})}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "my program.py"
    path.write_text(RECEIVED)
    return path


def nowhere(folder: Path, values: list[str]) -> None:
    """Fails where a file of a folder has one of the values, in its name or its bytes."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    for path in files:
        data = path.read_bytes() + os.fsencode(path)
        for value in values:
            assert value.encode() not in data, f"{value} is in {path}"


@pytest.mark.parametrize("way", ["attached", "json", "detached"])
def test_the_command_receives_its_secrets_and_no_file_has_them(
    lorawatch_home: Path, tmp_path: Path, program: Path, way: str
) -> None:
    received = tmp_path / "received"
    more = {"attached": [], "json": ["--json"], "detached": ["--detach"]}[way]
    environment = {"HF_TOKEN": "environment-S3cret"}
    said = record(program, received, *more, arguments=TYPED, env=environment)
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state in ENDED)
    wait_for(lambda: not any((lorawatch_home / "open").iterdir()))
    assert run.state().state == "completed", run.state()
    assert received.read_bytes() == b"\0".join(TYPED)
    recorder = (tmp_path / "received.recorder").read_bytes()
    assert (TOKEN.encode() in recorder) is (way != "detached")  # a shell's line is its user's; ours has no secret

    shown = SHOWN if way == "attached" else []
    for args in [*shown, ["snapshot", str(lorawatch_home / "copy.duckdb")]]:
        done = lorawatch(*args)
        said += done.stdout + done.stderr
    for value in [*VALUES, "environment-S3cret"]:
        assert value not in said
    nowhere(lorawatch_home, [*VALUES, "environment-S3cret"])
    info = run.info()
    assert info.command is not None
    assert len(info.command) == len(TYPED) + 3
    assert info.command[3:6] == ["--token", "***", "--api-key=***"]
    assert "\\xff\\xfe caf\\xe9" in info.command
    assert info.command[-7:] == ["--steps", "3", "*", "$HOME", "--", "--debug", "--record"]
    assert any("--token" in line and "***" in line for line in recipe_lines(run_figures(run.run_id) or {}))


def test_a_command_line_of_half_a_megabyte_goes_through_the_pipe_whole(
    lorawatch_home: Path, tmp_path: Path, program: Path
) -> None:
    received = tmp_path / "received"
    arguments = [b"--password", *(b"%05d" % n + b"x" * 99_000 for n in range(5))]
    record(program, received, "--detach", arguments=arguments)
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state in ENDED)
    assert received.read_bytes() == b"\0".join(arguments)


def test_what_a_failing_command_says_of_its_own_line_is_masked(lorawatch_home: Path, tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text("import sys\nraise ValueError('no such option: ' + ' '.join(sys.argv[1:]))\n")
    done = lorawatch("--record", "--", sys.executable, str(program), "--token", TOKEN, "--password=plainS3cret")
    assert done.returncode == 1
    for value in (TOKEN, "plainS3cret"):
        assert value not in done.stdout + done.stderr
    ((message,),) = sql(lorawatch_home, "SELECT message FROM runs")
    assert "no such option: --token *** --password=***" in message
    run = the_run(lorawatch_home)
    for path in (
        run.root / "run.json",
        run.root / "state.json",
        *run.journal.iterdir(),
        lorawatch_home / "history.duckdb",
    ):
        assert TOKEN.encode() not in path.read_bytes()  # the command's own log is the command's


def test_a_program_that_is_not_there_is_named_without_the_secret_in_its_name(lorawatch_home: Path) -> None:
    for more in ([], ["--detach"]):
        done = lorawatch("--record", *more, "--", f"https://me:plainS3cret@host/{TOKEN}")
        assert TOKEN not in done.stdout + done.stderr
        assert "plainS3cret" not in done.stdout + done.stderr
        assert done.returncode == (0 if more else 3)
    wait_for(lambda: not any((lorawatch_home / "open").iterdir()))
    nowhere(lorawatch_home, [TOKEN, "plainS3cret"])


def test_a_recorder_that_does_not_take_the_command_is_reported(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(LorawatchError, match="ended before it began") as raised:
        send(["x"] * 100_000, os.fdopen(writer, "wb"), tmp_path / "recorder.log")
    assert "recorder.log" in (raised.value.hint or "")


@pytest.mark.parametrize("sent", [[""], ["a", "", ""], ["\udcff\n", "é"], ["x" * 50_000]])
def test_what_is_sent_is_received_or_nothing(tmp_path: Path, sent: list[str]) -> None:
    reader, writer = os.pipe()
    send(sent, os.fdopen(writer, "wb"), tmp_path)
    data = os.fdopen(reader, "rb").read()
    assert receive(io.BytesIO(data)) == sent
    for part in (data[:-1], b"", data + b"x", b"\n"):
        assert receive(io.BytesIO(part)) is None


def test_a_prepared_command_whose_line_is_gone_is_not_started_masked(lorawatch_home: Path, program: Path) -> None:
    run = RunDir.create(RunInfo(run_id="", name="x", created_at=0, host="h", user="u", world_size=0, own_command=True,
                                command=[sys.executable, str(program), "--token", "***"]))  # fmt: skip
    done = subprocess.run(
        command("supervise", run.run_id), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is in no file" in done.stderr
    assert run.state().state == "failed"


def test_a_run_directory_of_an_older_version_is_masked_on_its_way_into_the_history(lorawatch_home: Path) -> None:
    run = RunDir.create(
        RunInfo(run_id="", name="x", created_at=0, host="h", user="u", world_size=0, own_command=True)
    )  # fmt: skip
    old = {**msgspec.json.decode((run.root / "run.json").read_bytes()), "command": ["train", "--token", TOKEN]}
    (run.root / "run.json").write_bytes(msgspec.json.encode(old))
    with contextlib.suppress(AssertionError):
        catch_up()
    finish_run(run)
    assert sql(lorawatch_home, "SELECT command FROM runs") == [("train --token '***'",)]
    assert recipe_lines({"own_command": True, "command": f"train --token {TOKEN}"}) == ["train --token '***'"]
