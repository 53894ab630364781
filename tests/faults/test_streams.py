"""Standard streams that are closed, full or gone end no recorder and no command with a defect; nor do names of odd bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import command, lorawatch, sql, the_run

from lorawatch.system.terminal import CleanStream

CLOSED = ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


def through_shell(redirection: str, *args: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    """A command with a shell's redirection of its streams."""
    words = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*args)]
    return subprocess.run(words, capture_output=True, timeout=120, check=False, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("redirection", CLOSED)
def test_closed_streams_record_on(lorawatch_home: Path, redirection: str) -> None:
    program = "import os; print('said', os.fstat(0).st_mode > 0)"
    done = through_shell(redirection, "--record", "--", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert b"defect" not in done.stderr
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    run = the_run(lorawatch_home)
    assert (run.logs / "command.log").read_text() == "said True\n"
    for path in run.root.rglob("*.json"):  # nothing was printed into a file that got the closed one's number
        json.loads(path.read_bytes())
    done = through_shell(redirection, "--record", "--", "false")
    assert done.returncode == 1
    for args in (["runs"], ["show", "last"], ["sql", "SELECT 1"], ["--help"], ["sql", "SELEC"], ["nonsense"]):
        done = through_shell(redirection, *args)
        assert done.returncode == (2 if args[-1] in ("SELEC", "nonsense") else 0), (args, done)
        assert b"defect" not in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("args", "code"), [(["runs"], 1), (["compare"], 1), (["sql", "SELECT 1"], 1), (["--help"], 1)])
def test_an_answer_that_a_full_disk_refuses_is_a_failure_in_one_sentence(
    lorawatch_home: Path, args: list[str], code: int
) -> None:
    lorawatch("--record", "--", "true")
    done = through_shell(">/dev/full", *args)
    assert done.returncode == code, done.stderr
    assert done.stderr.count(b"standard output cannot be written: No space left on device") == 1
    assert b"defect" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_behind_its_output_ends_no_recording(lorawatch_home: Path, more: list[str]) -> None:
    done = through_shell(">/dev/full", "--record", *more, "--", "true")
    assert done.returncode == 0
    assert done.stderr.count(b"standard output cannot be written") == 1
    assert sql(lorawatch_home, "SELECT state FROM runs") == [("completed",)]
    assert through_shell("2>/dev/full", "--record", *more, "--", "false").returncode == 1
    assert through_shell(">/dev/full 2>/dev/full", "sql", "SELEC").returncode == 2


@pytest.mark.parametrize("args", [["sql", "SELECT * FROM range(50000)", "--format", "csv"], ["runs"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(lorawatch_home: Path, args: list[str]) -> None:
    lorawatch("--record", "--", "true")
    reader, writer = os.pipe()
    process = subprocess.Popen(command(*args), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_lacks_are_replaced(lorawatch_home: Path, encoding: str) -> None:
    lorawatch("--record", "--", "true")
    done = subprocess.run(
        command("sql", "SELECT chr(233) || chr(8212) || chr(28450) AS x"), capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "é—漢".encode(encoding, "replace") in done.stdout


def test_odd_bytes_in_names_are_recorded_as_they_can_be(lorawatch_home: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    recipe = folder / os.fsdecode(b"r\xff.yaml")
    recipe.write_text("name: odd\nmodel: {name: tiny, weights: random}\n")
    done = lorawatch("--record", "--", "true", os.fsdecode(b"\xfe"), cwd=folder, env={"LOGNAME": os.fsdecode(b"m\xfc")})
    assert done.returncode == 0, done.stderr
    info = the_run(lorawatch_home).info()
    assert info.cwd == f"{tmp_path}/caf\\xe9"
    assert info.command == ["true", "\\xfe"]
    assert info.user == "m\\xfc"
    done = lorawatch("estimate", str(recipe), cwd=folder)
    assert "defect" not in done.stderr
    done = lorawatch("--record", str(folder / "none.yaml"))
    assert done.returncode == 2


def test_a_working_folder_that_is_gone_is_no_reason_not_to_record(lorawatch_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    words = " ".join(["rmdir", str(folder), "&&", *command("--record", "--", "true")])
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert the_run(lorawatch_home).info().cwd is None


@pytest.mark.parametrize(
    "args", [["runs"], ["--record", "--", "true"], ["show"], ["sql", "SELECT 1"], ["doctor"], ["stop"]]
)
def test_a_home_of_odd_bytes_is_refused_in_one_sentence(tmp_path: Path, args: list[str]) -> None:
    home = os.fsdecode(os.fsencode(tmp_path) + b"/h\xe9")
    done = lorawatch(*args, env={"LORAWATCH_HOME": home})
    assert "defect" not in done.stderr
    if args != ["doctor"]:
        assert done.returncode == 2
        assert "h\\xe9 has a path that is no UTF-8" in done.stderr
    assert not Path(home).exists()


def test_a_stream_cleans_what_comes_in_pieces_too() -> None:
    import io

    raw = io.StringIO()
    stream = CleanStream(raw)
    for piece in ("a\x1b", "]52;c;x", "\x07b", "\x9b", "31mc", "\udcff"):
        stream.write(piece)
    assert not set(raw.getvalue()) & set("\x1b\x07\x9b\udcff")
    with pytest.raises(TypeError):
        stream.write(b"x")  # type: ignore[arg-type]
    assert not hasattr(stream, "buffer")
