"""The environment in which a child process has AMD's GPUs by the fake package amdsmi, and no NVIDIA driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).with_name("amdsmi_package")


def gpu_uuid(index: int) -> str:
    """The UUID of the fake's GPU."""
    return f"GPU-de8287300da37c7{index:x}"


def no_nvidia(folder: Path) -> dict[str, str]:
    """Variables that leave a child process without NVIDIA's library, on a machine that has it too."""
    (folder / "libnvidia-ml.so.1").write_text("not a library")
    return {"LD_LIBRARY_PATH": str(folder)}


def amd_env(gpus: tuple[str, ...] = ("mi300x",), **settings: Any) -> dict[str, str]:
    """Variables for a child process's environment.

    Args:
        gpus: Their kinds: `mi300x`, `r9700`.
        settings: As fakes/amdsmi_package/amdsmi.py has them.
    """
    return {"PYTHONPATH": str(PACKAGE), "AMDSMI_FAKE": json.dumps({"gpus": gpus, **settings})}
