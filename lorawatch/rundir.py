"""The run directory: the protocol between workers, recorder, viewers and whoever may stop a run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from lorawatch import paths
from lorawatch.errors import RunNotFound
from lorawatch.permissions import make_private
from lorawatch.processes import ProcessId
from lorawatch.records import Failure

State = Literal["queued", "starting", "running", "stopping", "completed", "stopped", "failed", "lost"]
ENDED: frozenset[str] = frozenset({"completed", "stopped", "failed", "lost"})
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit
_T = TypeVar("_T")


class Gpu(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A GPU of the host, used by the run or not."""

    host: str
    gpu_index: int
    """NVML's index, which follows PCI order."""
    gpu_uuid: str
    sku: str
    """The model as sold, as the driver names it."""
    memory_total_bytes: int | None = None
    power_limit_w: float | None = None
    used: bool = False


class RunInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`run.json`: what was asked, by whom, where, with which versions."""

    run_id: str
    name: str
    created_at: float
    host: str
    user: str
    world_size: int
    device: Literal["cuda", "cpu"] | None = None
    """None where an own command decides for itself."""
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


class RunState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`state.json`: what is true of the run now; replaced atomically."""

    state: State = "queued"
    attempt: int = 0
    started_at: float | None = None
    ended_at: float | None = None
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
        folder = paths.runs_folder()
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
        make_private(paths.open_runs_folder())
        (paths.open_runs_folder() / info.run_id).touch()
        return run

    @classmethod
    def find(cls, name: str) -> RunDir:
        """The run with this id, an unambiguous beginning of it, `last`, or the latest run of that name.

        Raises:
            RunNotFound: There is none, or the beginning fits several.
        """
        folder = paths.runs_folder()
        ids = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
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

    def info(self) -> RunInfo:
        return msgspec.json.decode((self.root / "run.json").read_bytes(), type=RunInfo)

    def write_info(self, info: RunInfo) -> None:
        write_atomically(self.root / "run.json", msgspec.json.format(msgspec.json.encode(info), indent=1))

    def state(self) -> RunState:
        """What `state.json` says; a run that has none yet is queued."""
        try:
            return msgspec.json.decode((self.root / "state.json").read_bytes(), type=RunState)
        except FileNotFoundError:
            return RunState()

    def write_state(self, state: RunState) -> None:
        write_atomically(self.root / "state.json", msgspec.json.encode(state))

    def request(self, name: str, content: bytes = b"") -> None:
        """Leave a request in `control/`: `stop`, `kill`, `checkpoint`."""
        write_atomically(self.control / name, content)

    def requested(self, name: str) -> bool:
        return (self.control / name).exists()

    def request_of(self, name: str) -> bytes | None:
        """What a request says; None where there is none."""
        try:
            return (self.control / name).read_bytes()
        except OSError:
            return None


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace a file as a whole, mode 0600: a reader sees the old content or the new, never a part.

    Args:
        durable: Also wait until the disk has it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """A small JSON file as a struct; None where it is absent or not (yet) valid."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
