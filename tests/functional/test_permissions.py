"""Whose eyes what lorawatch writes is for: the home is its user's alone, what it makes for the user follows their umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import command, the_run, wait_for

from lorawatch.doctor import host
from lorawatch.run.directory import ENDED
from lorawatch.system.permissions import export_mode, make_private, shared_folders, users_umask

UMASKS = [0o000, 0o022, 0o077]
PROGRAM = "import os, sys\nopen(sys.argv[1], 'w').close()\nos.mkdir(sys.argv[1] + '.d')\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def under(umask: int, *args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*args), umask=umask, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def all_private(home: Path) -> None:
    """Every folder and file of a home is its user's alone, DuckDB's included."""
    for path in (home, *home.rglob("*")):
        allowed = 0o700 if path.is_dir() else 0o600
        assert mode(path) & ~allowed == 0, f"{path} has mode {mode(path):o}"


@pytest.mark.parametrize("umask", UMASKS)
@pytest.mark.parametrize("more", [[], ["--detach"]], ids=["attached", "detached"])
def test_a_home_is_private_and_the_command_has_its_users_umask(
    lorawatch_home: Path, tmp_path: Path, umask: int, more: list[str]
) -> None:
    made = tmp_path / "made"
    home = lorawatch_home / "a" / "b"  # none of it is there
    os.environ["LORAWATCH_HOME"] = str(home)
    under(umask, "--record", *more, "--", sys.executable, "-c", PROGRAM, str(made))
    run = the_run(home)
    wait_for(lambda: run.state().state in ENDED and not any((home / "open").iterdir()))
    all_private(lorawatch_home)
    assert mode(made) == 0o666 & ~umask
    assert mode(tmp_path / "made.d") == 0o777 & ~umask
    for form, name in (("csv", "a.csv"), ("json", "a.json"), ("parquet", "a.parquet")):
        under(umask, "sql", "SELECT 1 AS x", "--format", form, "-o", str(tmp_path / name))
        assert mode(tmp_path / name) == 0o666 & ~umask
    under(umask, "compare", "-o", str(tmp_path / "compare.html"))
    assert mode(tmp_path / "compare.html") == 0o666 & ~umask
    (tmp_path / "compare.html").chmod(0o640)
    under(umask, "compare", "-o", str(tmp_path / "compare.html"))
    assert mode(tmp_path / "compare.html") == 0o640  # it is the user's
    all_private(lorawatch_home)


def test_a_recipes_run_is_private_under_any_umask(lorawatch_home: Path) -> None:
    under(0o000, "--record", "tiny", "--gpus", "cpu:1", "--set", "train.steps=2")
    for path in (lorawatch_home, *lorawatch_home.iterdir(), the_run(lorawatch_home).root):
        assert mode(path) & 0o077 == 0, path
    # What the ranks write inside of it may be open: the folder above it is not.


def test_a_home_that_was_there_keeps_its_mode_and_doctor_names_it(lorawatch_home: Path) -> None:
    lorawatch_home.mkdir()
    lorawatch_home.chmod(0o2775)  # a group shares it on purpose
    under(0o022, "--record", "--", "true")
    assert mode(lorawatch_home) == 0o2775
    assert mode(lorawatch_home / "runs") & 0o777 == 0o700
    checks = {c.name: c for c in host.storage()}
    assert "its group" in checks["shared"].found
    lorawatch_home.chmod(0o777)
    assert shared_folders([lorawatch_home, lorawatch_home / "none"]) == [(lorawatch_home, "all users of this machine")]
    lorawatch_home.chmod(0o700)
    assert "shared" not in {c.name for c in host.storage()}


def test_only_missing_folders_are_made_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "there").mkdir(mode=0o755)
        make_private(tmp_path / "there" / "a" / "b")
        assert [mode(tmp_path / p) for p in ("there", "there/a", "there/a/b")] == [0o755, 0o700, 0o700]
        make_private(tmp_path / "there" / "a" / "b")
        assert users_umask() == 0
        assert export_mode(tmp_path / "none") == 0o666
    finally:
        os.umask(before)
