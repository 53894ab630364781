"""The documents for contributors name what the tree has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_A_RUN = ("adapter/", "best/", "stacks/", "control/", "journal/", "logs/", "checkpoints/", "runs/")
"""Folders of a run directory, which the tree does not have."""


def paths_named(text: str) -> set[str]:
    """What stands in backticks and looks like a file or folder of the tree."""
    quoted = re.findall(r"`([^`\n]+)`", text)
    paths = {words.split(":")[0].strip() for words in quoted}
    return {p for p in paths if re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/?", p) and ("/" in p or p.endswith((".py", ".md")))}


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_is_there(document: str) -> None:
    named = {p for p in paths_named((ROOT / document).read_text(encoding="utf-8")) if not p.startswith(OF_A_RUN)}
    assert len(named) > 5
    missing = [p for p in sorted(named) if not any((base / p).exists() for base in (ROOT, ROOT / "lorawatch"))]
    assert not missing


def test_every_package_is_named() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {f"lorawatch/{p.parent.name}/" for p in (ROOT / "lorawatch").glob("*/__init__.py")}
    packages |= {"screens/", "storage/", "assets/"}
    assert not [p for p in sorted(packages) if f"`{p}`" not in text]


def test_the_tree_tracks_what_is_named() -> None:
    """A file that exists here only, such as a build output, is not named."""
    tracked = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    )
    if not tracked:
        pytest.skip("not a git checkout")
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    files = {p for p in paths_named(text) if p.endswith(".py")}
    assert not [p for p in sorted(files) if p not in tracked and f"lorawatch/{p}" not in tracked]
