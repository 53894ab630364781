"""A folder that takes its name: the old one or the new, whatever happens in between."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from lorawatch.system import folders


def a_folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_new_folder_has_the_name_and_nothing_is_left_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    target = tmp_path / "best"
    for content in ("one", "two", "three"):
        folders.replace(a_folder(tmp_path / f".best.{content}", content), target)
        assert (target / "file").read_text() == content
        assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_names_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    """On the file systems that tests run on; else the name would be free for a moment."""
    one, other = a_folder(tmp_path / "one", "1"), a_folder(tmp_path / "other", "2")
    assert folders._exchange(one, other)
    assert [(p / "file").read_text() for p in (one, other)] == ["2", "1"]
    assert not folders._exchange(one, tmp_path / "absent")


def test_a_death_between_two_renames_is_mended_and_halves_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = a_folder(tmp_path / "best", "old"), Path.rename
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)

    def die(self: Path, to: Path) -> Any:
        if self.name == ".best.new":
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        folders.replace(a_folder(tmp_path / ".best.new", "new"), target)
    monkeypatch.setattr(Path, "rename", rename)
    assert not target.exists()
    folders.recover(target)
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    folders.recover(tmp_path / "absent")


def test_what_the_disk_refuses_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = a_folder(tmp_path / "best", "old"), Path.rename
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)

    def refuse(self: Path, to: Path) -> Any:
        if self.name == ".best.new":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="quota"):
        folders.replace(a_folder(tmp_path / ".best.new", "new"), target)
    assert (target / "file").read_text() == "old"
