"""A user's working folder lends our processes no module, and a user's own command everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import command, lorawatch, sql, the_run, wait_for

from lorawatch.launch.counting import count_tokens
from lorawatch.run.directory import ENDED
from lorawatch.system.interpreter import own_module

# Names that the standard library, torch, transformers or lorawatch itself import.
SHADOWS = (
    "random",
    "queue",
    "secrets",
    "types",
    "json",
    "logging",
    "typing",
    "dataclasses",
    "yaml",
    "torch",
    "click",
    "lorawatch",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder full of a user's modules, each of which would end whoever imports it."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(
            f"raise SystemExit('the user's {name}.py was imported')\n".replace("user's", "users")
        )
    monkeypatch.chdir(folder)
    return folder


def program(*args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The installed program, as a user calls it."""
    words = [str(Path(sys.executable).with_name("lorawatch")), *args]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize("more", [[], ["--detach"]], ids=["attached", "detached"])
def test_a_recipe_runs_in_such_a_folder(folder: Path, lorawatch_home: Path, more: list[str]) -> None:
    done = program("--record", "tiny", "--gpus", "cpu:1", "--set", "train.steps=2", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state in ENDED)
    assert run.state().state == "completed", run.state()


def test_python_m_lorawatch_runs_in_such_a_folder(folder: Path, lorawatch_home: Path) -> None:
    (folder / "lorawatch.py").unlink()  # found before anything of ours runs
    for name in ("runs", "doctor"):
        done = subprocess.run(
            [sys.executable, "-m", "lorawatch", name], capture_output=True, text=True, timeout=120, check=False
        )
        assert "was imported" not in done.stdout + done.stderr
        assert done.returncode == 0, done.stdout + done.stderr


def test_tokens_are_counted_in_such_a_folder(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"text": "one two"}\n')
    counted = count_tokens(folder / "rows.jsonl", "owner/none", 32)
    assert "is not here" in counted.words  # the model, and not the process


@pytest.mark.parametrize("more", [[], ["--detach"]], ids=["attached", "detached"])
@pytest.mark.parametrize("chosen", [None, "", "1"], ids=["unset", "empty", "set"])
def test_an_own_command_keeps_its_folder_and_its_environment(
    tmp_path: Path, lorawatch_home: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], chosen: str | None
) -> None:
    """Without a choice of the user's its working folder lends it modules; with one, that stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if chosen is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", chosen)
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "own.py").write_text(
        "import os\nprint('MARK', repr(os.environ.get('PYTHONSAFEPATH')))\nimport helper\n"
    )
    done = lorawatch("--record", *more, "--", sys.executable, "-m", "own")
    run = the_run(lorawatch_home)
    wait_for(lambda: run.state().state in ENDED)
    log = (run.logs / "command.log").read_text()
    if chosen == "1":
        assert "No module named own" in log
        assert (done.returncode == 0) is bool(more)
    else:
        assert f"MARK {chosen!r}" in log
        assert run.state().state == "completed", log
    wait_for(lambda: not any((lorawatch_home / "open").iterdir()))
    assert sql(lorawatch_home, "SELECT own_command FROM runs") == [(True,)]


def test_every_python_process_of_ours_starts_with_the_safe_path() -> None:
    assert own_module("m", "a") == [sys.executable, "-P", "-m", "m", "a"]
    import lorawatch as package

    root = Path(package.__file__).parent
    for path in (
        *root.rglob("*.py"),
        *(root.parent / "screens").rglob("*.py"),
        *(root.parent / "storage").rglob("*.py"),
    ):
        text = path.read_text(encoding="utf-8")
        if path.name != "interpreter.py":
            assert 'sys.executable, "-m"' not in text, path
            assert 'sys.executable, "-c"' not in text, path


def test_the_tests_own_program_is_the_installed_one() -> None:
    assert os.access(Path(sys.executable).with_name("lorawatch"), os.X_OK)
    assert command("runs")[0] == sys.executable
