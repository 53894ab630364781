"""A fake NVIDIA driver: builds `libnvidia-ml.so.1` from nvml_stub.c, and the environment that makes pynvml load it.

The variables reach the child processes only: pynvml finds the stub through LD_LIBRARY_PATH, which a process reads when
it starts.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
DATA = Path(__file__).parents[1] / "data"
EAGER = DATA / "h100_eager_10hz.csv"
COMPILED = DATA / "h100_compiled_10hz.csv"
# What an H100 takes, in microseconds (driver 580).
H100_DELAYS = {"nvmlDeviceGetTotalEnergyConsumption": 2900, "nvmlDeviceGetEnforcedPowerLimit": 170}
_ENTRY = struct.Struct("64s16Q")


def gpu_uuid(index: int) -> str:
    """The UUID of the stub's GPU."""
    return f"GPU-30def27d-ab75-0851-92cd-{index:012d}"


def build() -> Path:
    """The folder with the compiled library; compiled once a version of the source."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lorawatch-nvml-stub-{os.getuid()}-{digest}"
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        part = folder / f".building-{os.getpid()}"
        subprocess.run(
            [
                *["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o"],
                part,
                SOURCE,
                "-lpthread",
            ],
            check=True,
        )
        part.replace(library)
    return folder


def stub_env(
    folder: Path,
    *,
    gpus: int = 1,
    trace: Path = EAGER,
    errors: dict[str, int] | None = None,
    delays_us: dict[str, float] | None = None,
    lost: tuple[int, float] | None = None,
    hang: tuple[str, int, float, float] | None = None,
    memory_used: int | None = None,
    memory_celsius: int | None = None,
    processes: list[tuple[int, int, int]] | None = None,
) -> dict[str, str]:
    """Variables for a child process's environment, to lay over `os.environ`.

    Args:
        folder: Where the call counts go; made if absent.
        gpus: How many, 0 to 16.
        trace: The readings to replay.
        errors: NVML error codes by function (`nvmlDeviceGetTemperature`, `…@2` for GPU 2 only, `field186`).
        delays_us: Sleep in each call by function, `*` for all others; None: what an H100 takes.
        lost: GPU index and seconds after nvmlInit at which it is lost.
        hang: Function, GPU index, seconds after nvmlInit, seconds that its next call then hangs.
        memory_used: Bytes in use on every GPU; None: the trace's.
        memory_celsius: The memory's temperature on every GPU; None: no card has the sensor.
        processes: GPU index, pid and bytes of the processes on the GPUs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("LD_LIBRARY_PATH")
    env = {
        "LD_LIBRARY_PATH": f"{build()}{':' + path if path else ''}",
        "NVML_STUB_TRACE": str(trace),
        "NVML_STUB_GPUS": str(gpus),
        "NVML_STUB_T0": repr(time.time()),
        "NVML_STUB_COUNTS": str(folder / "nvml_counts"),
        "NVML_STUB_DELAYS": _pairs(H100_DELAYS if delays_us is None else delays_us),
        "NVML_STUB_ERRORS": _pairs(errors or {}),
    }
    if lost is not None:
        env["NVML_STUB_LOST"] = f"{lost[0]}:{lost[1]}"
    if hang is not None:
        env["NVML_STUB_HANG"] = f"{hang[0]}@{hang[1]}:{hang[2]}:{hang[3]}"
    if memory_used is not None:
        env["NVML_STUB_MEMORY"] = str(memory_used)
    if memory_celsius is not None:
        env["NVML_STUB_MEMORY_CELSIUS"] = str(memory_celsius)
    if processes:
        env["NVML_STUB_PIDS"] = ",".join(f"{g}:{p}:{b}" for g, p, b in processes)
    return env


def call_counts(folder: Path) -> dict[str, list[int]]:
    """Calls by function and GPU that the processes with `stub_env(folder)` have made.

    `nvmlDeviceGetClockInfo` counts apart as `…:sm` and `…:memory`, and `nvmlDeviceGetFieldValues` as `…:memory` where it is
    asked for the memory's temperature.
    """
    counts = {}
    for name, *calls in _ENTRY.iter_unpack((folder / "nvml_counts").read_bytes()):
        text = name.rstrip(b"\0").decode()
        if text:
            counts[text] = calls
    return counts


def run_python(code: str, env: dict[str, str], *, timeout: float = 60) -> str:
    """Run a piece of Python with this environment over ours; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _pairs(values: dict[str, float] | dict[str, int]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())
