"""Small files: whole or absent, and never a way to make lorawatch wait or write elsewhere."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lorawatch.run.directory import RunState
from lorawatch.system.files import Reserve, beside, read_json, read_small, write_atomically


def test_names_beside_a_file_are_never_chosen_twice(tmp_path: Path) -> None:
    names = {beside(tmp_path / "state.json") for _ in range(1000)}
    assert len(names) == 1000
    assert all(n.parent == tmp_path and n.name.startswith(".state.json.") for n in names)


def test_writers_at_the_same_moment_leave_one_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    contents = [bytes([65 + i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=lambda c=c: [write_atomically(path, c) for _ in range(20)]) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_planted_link_is_neither_written_through_nor_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    path = tmp_path / "stop"
    path.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        read_small(path)
    write_atomically(path, b"asked")
    assert (precious.read_text(), path.read_bytes(), path.is_symlink()) == ("keep", b"asked", False)
    planted = tmp_path / ".stop.planted"
    planted.symlink_to(precious)
    monkeypatch.setattr("lorawatch.system.files.beside", lambda path: planted)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"evil")
    assert precious.read_text() == "keep"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_a_files_place_keeps_nobody_waiting(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "state.json")
    with pytest.raises(OSError):
        read_small(tmp_path / "state.json")
    assert read_json(tmp_path / "state.json", RunState) is None


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "state.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(OSError) as caught:
        read_small(tmp_path / "state.json")
    assert caught.value.errno == errno.EFBIG


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "a", b"x")
        Reserve(tmp_path / "deep" / "b", 64).write(b"x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "deep", "deep/b")] == [0o600, 0o700, 0o600]


def test_what_was_reserved_is_written_on_a_full_disk_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"before")
    reserve = Reserve(path, 100)
    (room,) = [p for p in tmp_path.iterdir() if p != path]
    assert room.stat().st_size == 100
    opened = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *rest, **named)

    with monkeypatch.context() as full:
        full.setattr(os, "open", refuse)
        with pytest.raises(OSError):
            reserve.write(b"x" * 101)
        reserve.write(b"the end")
    assert path.read_bytes() == b"the end"
    reserve.release()
    assert list(tmp_path.iterdir()) == [path]
