"""A damaged history is set aside, and a new one is made from the journals and the readable rest of the old one.

A note beside the history (`files.noted`) says that the new one is not whole yet. It is written before anything moves and
removed when all is in, so that the next call after a crash continues. One process at a time does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorawatch.errors import HistoryBusy, HistoryDamaged, HistoryError, JournalUnreadable
from lorawatch.run.directory import RunDir
from lorawatch.storage import files
from lorawatch.storage.connection import held, writing
from lorawatch.storage.examine import examine
from lorawatch.storage.explain import explained
from lorawatch.storage.ingest import finish_run
from lorawatch.storage.rescue import Rescued, rescue
from lorawatch.system import home

_EXAMINE_S = 60.0
_WAIT_S = 30.0
_RETRY_S = 0.05


@dataclass
class Rebuilt:
    """A history that is whole again.

    Attributes:
        asides: The histories that were set aside, and the reason of each.
        runs: How many runs came from their journals.
        rescued: What came from the files set aside; its `lost` lists what could not be read.
        failed: Journals that could not be read.
    """

    asides: list[tuple[Path, str]] = field(default_factory=list)
    runs: int = 0
    rescued: Rescued = field(default_factory=Rescued)
    failed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The result, as lines of text."""
        saved = self.rescued
        imported = f"{_many(len(saved.imported), 'imported table')} ({_many(sum(saved.imported.values()), 'row')})"
        kinds = [
            (saved.runs, f"{_many(len(saved.runs), 'run')} without a run directory"),
            (saved.parts, f"rows of {_many(len(saved.parts), 'run')} whose journals are not whole any more"),
            (saved.imported, imported),
            (saved.own, f"of your own: {', '.join(saved.own)}"),
        ]
        lines = [f"the old one is kept: {path}" for path, _ in self.asides if os.path.lexists(path)]
        lines.append(f"the new one has {_many(self.runs, 'run')} from the journals")
        lines += [f"  and from the old one {words}" for some, words in kinds if some]
        return lines + [f"  {what}" for what in (*saved.lost, *self.failed)]


def repair(
    error: HistoryDamaged | None = None,
    *,
    history: Path | None = None,
    on_wait: Callable[[str], None] = lambda words: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    wait_s: float = 3600.0,
) -> Rebuilt | None:
    """Replace a damaged history by a whole one, or continue to; None where another process has done so.

    Args:
        error: The damage; without one, a history that may be sound is set aside and rebuilt.
        history: The history file; only the home's is filled from journals.
        on_wait: Called once with the reason of a wait.
        on_progress: Takes how many runs are done, and of how many.
        wait_s: How long to wait for another process that rebuilds it.

    Raises:
        HistoryError: The old one can be read whole; or the new one cannot be written, and the next call goes on.
        HistoryBusy: Others held the history, or were making it, all that time.
    """
    path = history or home.history_file()
    with explained(path), _one_at_a_time(path, on_wait, wait_s):
        if not files.noted(path) and not _set_aside(path, error):
            return None
        with writing(path, deadline_s=_WAIT_S):  # makes it
            pass
        asides = files.noted(path)
        done = Rebuilt([(path.with_name(a.name), a.why) for a in asides])
        if path == home.history_file():
            _take_runs(done, on_progress)
        for aside, _ in done.asides:
            _take_over(aside, path, done.rescued)
        with held(
            path, time.monotonic() + _WAIT_S
        ):  # what a recorder has set aside meanwhile is left for the next call
            files.note(path, [a for a in files.noted(path) if a not in asides])
        return done


@contextlib.contextmanager
def _one_at_a_time(path: Path, on_wait: Callable[[str], None], wait_s: float) -> Iterator[None]:
    lock = files.rebuilding(path).with_name(files.rebuilding(path).name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + wait_s
    waits = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise HistoryBusy(f"another lorawatch is rebuilding the history {path}", hint="try again") from None
            if not waits:
                on_wait(f"another lorawatch is rebuilding the history {path}; waiting for it")
                waits = True
            time.sleep(_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _set_aside(path: Path, error: HistoryDamaged | None) -> bool:
    """Returns whether there is something to rebuild."""
    if error is not None and error.file != files.identity(path):
        return False  # another process has set it aside already
    if error is not None and not error.certain:
        with contextlib.suppress(HistoryDamaged):
            examine(path, budget_s=_EXAMINE_S)
            raise HistoryError(
                f"{error.message}; but every row of it can be read",
                hint="if it comes again: lorawatch doctor --rebuild-history makes a new one, and keeps this one",
            )
    with held(path, time.monotonic() + _WAIT_S):
        if os.path.lexists(path):
            _check_free(path)
            why = error.message if error else "a new one was asked for"
            files.set_aside(path, why, "damaged" if error else "replaced")
    return True


def _check_free(path: Path) -> None:
    """Check that no other program has the file open: it could write to it while it is read.

    Raises:
        HistoryBusy: Another program has it open.
        OSError: It may not be opened.
    """
    if not path.is_file():
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as DuckDB does
    except (BlockingIOError, PermissionError):
        raise HistoryBusy(f"another program holds the history {path}", hint="close it, then try again") from None
    finally:
        os.close(descriptor)


def _take_runs(done: Rebuilt, on_progress: Callable[[int, int], None]) -> None:
    """Ingest the journals of every marked run; a run that is in already has no mark any more."""
    folder = home.open_runs_folder()
    runs = [RunDir(home.runs_folder() / marker.name) for marker in sorted(folder.glob("*"))]
    runs = [run for run in runs if (run.root / "run.json").is_file()]
    for number, run in enumerate(runs):
        on_progress(number, len(runs))
        try:
            finish_run(run, deadline_s=_WAIT_S)
        except JournalUnreadable as error:
            done.failed.append(error.message)
    on_progress(len(runs), len(runs))
    done.runs = sum(1 for _ in home.runs_folder().glob("*/run.json"))


def _take_over(aside: Path, path: Path, into: Rescued) -> None:
    if not os.path.lexists(aside):  # it was noted but not moved: another call has set it aside under another name
        return
    rescued = rescue(aside, path)
    into.runs += rescued.runs
    into.parts += rescued.parts
    into.imported.update(rescued.imported)
    into.own += rescued.own
    into.lost += rescued.lost


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
