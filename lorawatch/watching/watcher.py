"""The thread behind the Live screen: follows a run, replays one, or samples this machine, and hands out frames."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lorawatch.errors import HistoryError, LorawatchError
from lorawatch.launch.choose import launcher_logs
from lorawatch.run.directory import ENDED, Gpu, RunDir, RunState
from lorawatch.run.follower import Follower
from lorawatch.run.liveness import Liveness, liveness
from lorawatch.run.records import Event, GpuSample, HostSample, Record
from lorawatch.system import home
from lorawatch.text.sanitize import clean
from lorawatch.watching.final import read_final
from lorawatch.watching.frame import Frame
from lorawatch.watching.replay import Replay
from lorawatch.watching.watch import Watch, gpus_words

if TYPE_CHECKING:
    from lorawatch.storage.past import Past
    from lorawatch.telemetry.driver import GpuDriver
    from lorawatch.telemetry.sampler import Sampler
    from lorawatch.telemetry.snapshot import Snapshot

PERIOD_S = 0.15  # five samples a second come; more frames would only stand in a key's way
QUIET_S = 1.0
LOOK_AROUND_S = 1.0
MONITOR_HZ = 4.0
LOG_LINES = 200
SEED_BYTES = 4 << 20  # a longer backlog comes from the history, a shorter one is read quicker than that is opened
POLL_S = 0.3  # of reading between two frames
_LOG_BYTES = 32 << 10


class Watcher:
    """Hands out a frame whenever there is something new, at most seven a second and at least one a second.

    Args:
        on_frame: Takes each frame, on the watcher's thread; must not block.
        on_machine: Told once what machine this is: its GPUs, and one line for people.
        host: This machine's name.

    The methods that change what is watched return at once; errors come as a frame's notice.
    """

    def __init__(
        self, on_frame: Callable[[Frame], None], on_machine: Callable[[list[Gpu], str], None], host: str
    ) -> None:
        self._on_frame = on_frame
        self._on_machine = on_machine
        self._host = host
        self._stop = threading.Event()
        self._orders: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._opening = threading.Thread(target=self._open, name="machine", daemon=True)
        self._opened: tuple[GpuDriver | None, str] | None = None
        self._inbox: deque[Record] = deque()
        self._sampler: Sampler | None = None
        self._driver: GpuDriver | None = None
        self._machine: Watch | None = None
        self._follower: Follower | None = None
        self._watch: Watch | None = None
        self._liveness = Liveness("recorded")
        self._replay: Replay | None = None
        self._live: tuple[str, ...] = ()
        self._notice = ""
        self._picked = False
        self._without_gpu = ""
        self._final_read = False
        self._log_rank = 0
        self._log: tuple[str, tuple[str, ...]] = ("", ())
        self._log_key: tuple[Path, int] | None = None

    # --- from the screens

    def start(self) -> None:
        """Begin; the machine is looked at on a thread of its own, since a driver may take seconds to answer."""
        self._thread.start()
        self._opening.start()

    def stop(self, timeout_s: float = 0.8) -> bool:
        """End the thread and the sampling. Returns whether all has ended; a hung driver's call is left behind."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        sampler = self._sampler
        ended = sampler is None or sampler.stop(max(deadline - time.monotonic(), 0.05))
        if self._opening.is_alive():
            self._opening.join(max(deadline - time.monotonic(), 0.01))
        return ended and not self._thread.is_alive() and not self._opening.is_alive()

    def watch(self, run_id: str | None) -> None:
        """Follow this run from its first line on; None shows the machine."""
        self._orders.append(lambda: self._follow(run_id))

    def replay(self, run_id: str, speed: float) -> None:
        """Replay this run from its beginning."""
        self._orders.append(lambda: self._begin_replay(run_id, speed))

    def control(self, action: Callable[[Replay], None]) -> None:
        """Pause, seek or step the replay."""
        self._orders.append(lambda: action(self._replay) if self._replay else None)

    def neighbour(self, forth: bool) -> None:
        """Follow the next or the previous of the runs that live at once."""
        self._orders.append(lambda: self._neighbour(forth))

    def next_log(self) -> None:
        """Show the log of the next rank."""
        self._orders.append(self._next_log)

    def machine_now(self) -> Snapshot | None:
        """This machine's own last readings, whatever run is shown; None before there are any."""
        return self._sampler.latest() if self._sampler is not None else None

    # --- on the thread

    def _run(self) -> None:
        looked_at = shown_at = -10.0
        before = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            new = bool(self._orders)
            while self._orders:
                try:
                    self._orders.popleft()()
                except (LorawatchError, OSError, msgspec.MsgspecError) as error:
                    self._notice = str(error).replace("\n", ";")
            if self._opened is not None:
                self._meet_machine(*self._opened)
                self._opened, new = None, True
            if now - looked_at >= LOOK_AROUND_S:
                looked_at = now
                self._look_around()
            if self._replay is not None:
                playing = not self._replay.paused
                self._replay.advance(now - before)
                new = new or playing
            elif self._follower is not None:
                new = bool(self._follower.poll(POLL_S)) or new
            new = (self._take_samples() and self._follower is None and self._replay is None) or new
            before = now
            if new or now - shown_at >= QUIET_S:
                shown_at = now
                self._show()
            self._stop.wait(max(PERIOD_S - (time.monotonic() - now), 0.01))

    def _show(self) -> None:
        try:
            self._on_frame(self._frame())
        except (OSError, msgspec.MsgspecError) as error:
            self._notice = f"{error}"

    def _frame(self) -> Frame:
        notice = self._notice
        if self._replay is not None:
            return replace(self._replay.frame(), notice=notice, others=self._live)
        if self._follower is not None and self._watch is not None:
            run = self._follower.run
            state = RunState()
            try:
                info = run.info()
                self._watch.info = info
                state = run.state()
            except FileNotFoundError:
                notice = f"the run directory {run.root} was deleted; this is the last that was seen"
            except (OSError, msgspec.MsgspecError) as error:
                notice = f"{run.root}: {error}"
            unread = self._follower.unread_bytes()
            if unread > SEED_BYTES:
                notice = notice or f"reading the journals: {unread / 2**20:,.0f} MiB to go"
            if self._follower.broken:
                notice = notice or f"{self._follower.broken} broken journal lines were stepped over"
            liveness = self._liveness
            alive = state.state in ENDED or liveness.kind not in ("unrecorded", "over")
            silence = liveness.words if liveness.kind == "silent" else ""
            frame = self._watch.frame(time.time(), state, recorder_alive=alive, silence=silence)
            attempt = frame.head.attempt if frame.head else 0
            return replace(frame, notice=notice, others=self._live, log=self._read_log(run, attempt))
        if self._machine is not None:
            return replace(self._machine.frame(time.time()), notice=notice or self._without_gpu, others=self._live)
        now = time.time()
        return Frame(at=now, begin=now - 1, head=None, panes=(), notice=notice or "asking the GPU driver …")

    def _take_samples(self) -> bool:
        taken = False
        while self._inbox:
            line = self._inbox.popleft()
            if self._machine is not None and isinstance(line, (GpuSample, HostSample, Event)):
                self._machine.feed(line)
                taken = True
        return taken

    def _look_around(self) -> None:
        """Which runs live, and whether the shown one is recorded; without a choice of the user's the latest is shown."""
        self._live = live_runs()
        self._look_at_recorder()
        self._look_for_final()
        if self._picked or self._replay is not None:
            return
        current = self._follower.run.run_id if self._follower else None
        if self._live and current not in self._live and (current is None or self._live[-1] > current):
            self._follow(self._live[-1], picked=False)

    def _look_at_recorder(self) -> None:
        if self._follower is not None:
            with contextlib.suppress(OSError):  # what is wrong with its directory is this frame's notice
                self._liveness = liveness(self._follower.run)

    def _look_for_final(self) -> None:
        """After a run's end its figures come from the history, which has them a moment later; a run that goes on after
        a resume has none again."""
        if self._follower is None or self._watch is None:
            return
        run = self._follower.run
        with contextlib.suppress(
            OSError, msgspec.MsgspecError
        ):  # what is wrong with its directory is this frame's notice
            if run.state().state not in ENDED:
                self._watch.final, self._final_read = None, False
            elif self._watch.final is None and not self._final_read:
                self._final_read = not (home.open_runs_folder() / run.run_id).exists()  # the history has all of the run
                self._watch.final = read_final(run.run_id)

    def _follow(self, run_id: str | None, *, picked: bool = True) -> None:
        self._notice = ""
        self._replay = None
        self._log, self._log_key, self._log_rank = ("", ()), None, 0
        if run_id is None:
            self._follower = self._watch = None
            self._picked = True
            return
        run = RunDir.find(run_id)
        self._picked = picked
        self._watch, self._final_read = Watch(run.info()), False
        self._follower = Follower(run, feed=self._watch.feed)
        self._look_at_recorder()
        self._look_for_final()
        if self._follower.unread_bytes() > SEED_BYTES:
            past = self._read_past(run_id)
            if past is not None:
                self._watch.seed(past)
                self._follower = Follower(run, feed=self._watch.feed, offsets=past.offsets)

    def _read_past(self, run_id: str) -> Past | None:
        """What the history has already; where it cannot be asked, the journals say the same, slower."""
        from lorawatch.storage.past import read_past

        try:
            return read_past(run_id)
        except HistoryError:
            return None

    def _begin_replay(self, run_id: str, speed: float) -> None:
        self._notice = ""
        run = RunDir.find(run_id)
        self._replay = Replay(run, speed, final=read_final(run.run_id))
        self._follower = self._watch = None

    def _neighbour(self, forth: bool) -> None:
        choices: list[str | None] = [None, *self._live]
        current = self._follower.run.run_id if self._follower else None
        at = choices.index(current) if current in choices else 0
        self._follow(choices[(at + (1 if forth else -1)) % len(choices)])

    def _next_log(self) -> None:
        ranks = max(self._watch.view.world_size if self._watch else 1, 1)
        self._log_rank = (self._log_rank + 1) % ranks
        self._log_key = None

    def _read_log(self, run: RunDir, attempt: int) -> tuple[str, tuple[str, ...]]:
        path = run.rank_log(attempt, self._log_rank)
        name = f"log · rank {self._log_rank}"
        if not path.exists():
            path = next((p for p in launcher_logs(run) if p.exists()), path)
            name = f"log · {path.stem}"
        try:
            size = path.stat().st_size
            if self._log_key != (path, size):
                with open(path, "rb") as file:
                    file.seek(max(size - _LOG_BYTES, 0))
                    text = file.read(_LOG_BYTES).decode(errors="replace")
                lines = tuple(clean(line.rsplit("\r", 1)[-1])[:400] for line in text.splitlines()[-LOG_LINES:])
                self._log, self._log_key = (name, lines), (path, size)
        except OSError:
            return name, ()
        return self._log

    # --- the machine

    def _open(self) -> None:
        # The driver's and the host's bindings load behind the first frame, not before it.
        from lorawatch.telemetry import opening, sampler  # noqa: F401
        from lorawatch.telemetry.driver import DriverUnavailable

        try:
            self._opened = (opening.open_driver(), "")
        except DriverUnavailable as why:
            self._opened = (None, why.reason)

    def _meet_machine(self, driver: GpuDriver | None, why: str) -> None:
        from lorawatch.telemetry.sampler import Sampler

        gpus = driver.gpus(self._host) if driver else []
        self._driver = driver
        self._machine = Watch(None, gpus)
        self._on_machine(gpus, gpus_words(gpus))
        self._without_gpu = why
        self._sampler = Sampler(
            gpus, driver, sample_hz=MONITOR_HZ, host=self._host, write=self._inbox.append,
            on_event=self._inbox.append, worker_pids=tuple, disk=_existing(home.home()),
        )  # fmt: skip
        if not self._stop.is_set():
            self._sampler.start()


def live_runs() -> tuple[str, ...]:
    """Ids of the runs that have not ended, oldest first; only those whose journals are not wholly in the history."""
    folder = home.open_runs_folder()
    try:
        markers = sorted(p.name for p in folder.iterdir())
    except OSError:
        return ()
    names = []
    for name in markers:
        run = RunDir(home.runs_folder() / name)
        try:
            state = run.state()
        except (OSError, msgspec.MsgspecError):
            continue
        if run.root.is_dir() and state.state not in ENDED and (state.recorder is not None or state.ranks):
            names.append(name)
    return tuple(names)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
