"""The run directory: the protocol between ranks, recorder, viewers and the commands that stop a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lorawatch.errors import LorawatchError, RunBusy, RunNotFound
from lorawatch.run.records import Failure
from lorawatch.system import home
from lorawatch.system.files import read_small, write_atomically
from lorawatch.system.permissions import make_private
from lorawatch.system.processes import ProcessId
from lorawatch.system.visible_devices import NVIDIA

State = Literal["queued", "starting", "running", "stopping", "completed", "stopped", "failed", "lost"]
ENDED: frozenset[str] = frozenset({"completed", "stopped", "failed", "lost"})
RUN_DIR_VARIABLE = "LORAWATCH_RUN_DIR"
"""In the environment of whatever is started for a run: the run's directory."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit
_LOCK_WAIT_S = 30.0


class Gpu(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A GPU of the host, used by the run or not."""

    host: str
    gpu_index: int
    """The driver's index, which follows PCI order."""
    gpu_uuid: str
    """As the driver and torch both give it; `AMD-<index>` for an AMD GPU that has none."""
    sku: str
    """The model as sold, as the driver names it."""
    memory_total_bytes: int | None = None
    power_limit_w: float | None = None
    used: bool = False
    vendor: str = NVIDIA
    """`nvidia` or `amd`; any word, so that a run of a later version can be read."""


class RunInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`run.json`: what was asked, by whom, where, with which versions."""

    run_id: str
    name: str
    created_at: float
    host: str
    user: str
    world_size: Annotated[int, msgspec.Meta(ge=0, le=65_536)]
    """0 until the ranks of an own command say it."""
    device: Literal["cuda", "cpu"] | None = None
    """None where an own command decides."""
    recipe: dict[str, object] | None = None
    command: list[str] | None = None
    """An own command's arguments, or torchrun's."""
    own_command: bool = False
    sample_hz: float = 5.0
    """Rate of the fast telemetry lane."""
    gpus: list[Gpu] = []
    tags: list[str] = []
    sweep_id: str | None = None
    """Runs of one sweep share it."""
    lorawatch_version: str | None = None
    torch_version: str | None = None
    driver_version: str | None = None
    git_commit: str | None = None
    cwd: str | None = None

    @property
    def used_gpus(self) -> list[Gpu]:
        """The GPUs that the run uses, in the host's order."""
        return [gpu for gpu in self.gpus if gpu.used]

    @property
    def separate(self) -> bool:
        """Whether its ranks train separately, each its own model."""
        launch = (self.recipe or {}).get("launch")
        return isinstance(launch, dict) and launch.get("strategy") == "separate"

    @property
    def eval_every(self) -> int | None:
        """Steps between two evaluations of its recipe; None where there are none on the way."""
        train = (self.recipe or {}).get("train")
        every = train.get("eval_every") if isinstance(train, dict) else None
        return every if isinstance(every, int) and every > 0 else None


class RunState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`state.json`: what is true of the run now; replaced atomically."""

    state: State = "queued"
    attempt: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    elapsed_s: float | None = None
    """Seconds that it was recorded, by the monotonic clock: setting the time of day does not change it."""
    heartbeat_at: float | None = None
    failure: Failure | None = None
    message: str | None = None
    """Why it failed, one line for people."""
    exit_code: int | None = None
    resumed_at: int | None = None
    """After which step the run was resumed last; None where it never was."""
    step: int = 0
    steps_total: int | None = None
    recorder: ProcessId | None = None
    launcher: ProcessId | None = None
    """torchrun's agent, or the own command."""
    ranks: list[ProcessId] = []
    """Processes of the ranks that the recorder has found below the launcher."""
    family: list[tuple[int, int]] = []
    """Pid and start time of all processes that it has found there, numbered as the recorder is."""


def new_run_id(at: float | None = None) -> str:
    """An id that sorts by time and is short to type: 8 letters of Crockford's base 32, the time in tenths of a second.

    The creation of the run directory makes it unique on its home.
    """
    ticks = int((time.time() if at is None else at) * 10)
    letters = []
    for _ in range(8):
        ticks, letter = divmod(ticks, 32)
        letters.append(_ALPHABET[letter])
    return "".join(reversed(letters))


class RunDir:
    """Paths and small files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"RunDir({str(self.root)!r})"

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def best(self) -> Path:
        return self.root / "best"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    def rank_journal(self, rank: int) -> Path:
        return self.journal / f"rank-{rank}.jsonl"

    def host_journal(self, host: str) -> Path:
        return self.journal / f"host-{host}.jsonl"

    @property
    def events_journal(self) -> Path:
        return self.journal / "events.jsonl"

    def attempt_logs(self, attempt: int) -> Path:
        return self.logs / f"attempt_{attempt}"

    def last_attempt(self) -> int:
        """The latest attempt that left logs, whether or not its ranks came to say more."""
        numbers = (path.name.partition("_")[2] for path in self.logs.glob("attempt_*"))
        return max((int(n) for n in numbers if n.isdecimal()), default=0)

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt_logs(attempt) / f"rank-{rank}.log"

    def exit_record(self, attempt: int, rank: int) -> Path:
        return self.attempt_logs(attempt) / f"rank-{rank}.exit.json"

    @classmethod
    def create(cls, info: RunInfo) -> RunDir:
        """Make the run's folders and `run.json`; a taken id moves on by a tenth of a second.

        Raises:
            OSError: The home cannot be written.
        """
        folder = home.runs_folder()
        make_private(folder)
        at = info.created_at
        while True:
            info.run_id = new_run_id(at)
            root = folder / info.run_id
            try:
                root.mkdir(mode=0o700)
                break
            except FileExistsError:
                at += 0.1
        run = cls(root)
        for sub in (run.journal, run.logs, run.control, run.attempt_logs(0)):
            make_private(sub)
        run.write_info(info)
        run.mark_open()
        return run

    def mark_open(self) -> None:
        """Say that the history lacks something of this run."""
        make_private(home.open_runs_folder())
        (home.open_runs_folder() / self.run_id).touch()

    @classmethod
    def find(cls, name: str) -> RunDir:
        """The run with this id, an unambiguous beginning or end of it, `last`, or the latest run of that name.

        Raises:
            RunNotFound: There is none, or the word fits several.
        """
        if not name.strip():
            raise RunNotFound("an empty word names no run", hint="lorawatch runs lists them; `last` is the latest")
        folder = home.runs_folder()
        ids = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []
        if not ids:
            raise RunNotFound(f"there is no run in {folder}", hint="start one: lorawatch --record")
        if name == "last":
            return cls(folder / ids[-1])
        matches = [i for i in ids if i == name] or [i for i in ids if i.startswith(name) or i.endswith(name)]
        if len(matches) == 1:
            return cls(folder / matches[0])
        if len(matches) > 1:
            raise RunNotFound(
                f"run {name!r} fits {len(matches)} runs: {', '.join(matches[:5])}", hint="type more of the id"
            )
        for run_id in reversed(ids):
            run = cls(folder / run_id)
            try:
                if run.info().name == name:
                    return run
            except (OSError, msgspec.MsgspecError):
                continue
        raise RunNotFound(f"there is no run {name!r} in {folder}", hint="lorawatch runs lists them")

    @contextlib.contextmanager
    def locked(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Hold the lock under which a run is adopted, resumed, deleted, judged or ended.

        Raises:
            RunBusy: Another process held the lock all that time.
            RunNotFound: The run was deleted meanwhile.
            LorawatchError: The run directory may not be written.
        """
        path = self.root / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise RunNotFound(f"run {self.run_id} is gone", hint="lorawatch runs lists them") from None
        except OSError as error:
            raise LorawatchError(
                f"run {self.run_id} cannot be locked: {error.strerror or error}: {path}",
                hint="only users who may write to its directory can change it",
            ) from None
        try:
            _wait_for_lock(descriptor, path, wait_s)
            try:
                same = os.fstat(descriptor).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if not same:
                raise RunNotFound(f"run {self.run_id} was deleted meanwhile", hint="lorawatch runs lists them")
            yield
        finally:
            os.close(descriptor)

    def info(self) -> RunInfo:
        return msgspec.json.decode(read_small(self.root / "run.json"), type=RunInfo)

    def info_left(self) -> RunInfo:
        """What was asked; where `run.json` cannot be read, what is known without it."""
        try:
            return self.info()
        except (OSError, msgspec.MsgspecError):  # its journals can still be read
            made = self.root.stat().st_mtime
            return RunInfo(run_id=self.run_id, name="?", created_at=made, host="?", user="?", world_size=0)

    def write_info(self, info: RunInfo) -> None:
        write_atomically(self.root / "run.json", msgspec.json.format(msgspec.json.encode(info), indent=1))

    def state(self) -> RunState:
        """What `state.json` says; a run that has none yet is queued."""
        try:
            return msgspec.json.decode(read_small(self.root / "state.json"), type=RunState)
        except FileNotFoundError:
            return RunState()

    def write_state(self, state: RunState) -> None:
        write_atomically(self.root / "state.json", msgspec.json.encode(state))

    def request(self, name: str, content: bytes = b"") -> None:
        """Leave a request in `control/`: `stop`, `kill`, `checkpoint`.

        Raises:
            OSError: It cannot be written, or the run's directory is gone.
        """
        try:
            write_atomically(self.control / name, content)
        except FileNotFoundError:  # the folder was deleted
            self.control.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self.control / name, content)

    def requested(self, name: str) -> bool:
        return (self.control / name).exists()

    def request_of(self, name: str) -> bytes | None:
        """What a request says; None where there is none."""
        try:
            return read_small(self.control / name, 4096)
        except OSError:
            return None


def _wait_for_lock(descriptor: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunBusy(
                    f"another lorawatch is deciding about this run: it holds {path} for {wait_s:.0f} s",
                    hint="try again",
                ) from None
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return
        else:
            return
