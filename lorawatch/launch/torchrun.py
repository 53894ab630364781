"""Starting the ranks under torchrun, as a process of its own session.

Facts behind the flags: torchrun registers SIGHUP again, so that it must be told which signals are its own; workers of a
restart read the last attempt's addresses unless the rendezvous store is not shared;
the agent dies of a broken pipe, so that its output goes to a file and nothing reads it through a pipe.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lorawatch.errors import MissingDependency
from lorawatch.launch.placement import Placement
from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir
from lorawatch.system.interpreter import SAFE_PATH, own_module
from lorawatch.system.permissions import users_umask
from lorawatch.text.masking import mask_text

# Longer than a step plus a save of an adapter, shorter than a person's patience.
SHUTDOWN_TIMEOUT_S = 60


def torch_version() -> str:
    """Version of the installed torch, found without importing it.

    Raises:
        MissingDependency: There is none.
    """
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency(
            "torch is not installed in this environment", hint="pip install lorawatch torch"
        ) from None


def arguments(run: RunDir, placement: Placement, *, max_restarts: int, separate: bool = False) -> list[str]:
    """torchrun's command line for a run's ranks on this host.

    Args:
        separate: Each rank trains its own model by itself.
    """
    torch_version()
    optional = {
        "--signals-to-handle": "SIGTERM,SIGINT",
        "--shutdown-timeout": str(SHUTDOWN_TIMEOUT_S),
    }
    source = Path(str(importlib.metadata.distribution("torch").locate_file("torch/distributed/run.py")))
    try:
        known = source.read_text()
    except OSError:
        known = ""
    flags = [f"{name}={value}" for name, value in optional.items() if name in known]  # older torchruns lack some
    return [
        *own_module("torch.distributed.run"),
        "--nnodes=1", f"--nproc-per-node={placement.world_size}", f"--max-restarts={max_restarts}",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--rdzv-id={run.run_id}", "--local-addr=127.0.0.1",
        *flags,
        "-m", "lorawatch.training.worker", str(run.root), *(["separate"] if separate else []),
    ]  # fmt: skip


def environment(
    run: RunDir,
    placement: Placement,
    base: Mapping[str, str] | None = None,
    *,
    first_attempt: int = 0,
    resumed_at: int | None = None,
) -> dict[str, str]:
    """The ranks' environment: this process's, with what the placement and the guards need.

    Args:
        first_attempt: How many attempts the run had before: torchrun counts its own from 0.
        resumed_at: The step of the checkpoint that a resumed run goes on from.
    """
    env = dict(os.environ if base is None else base) | SAFE_PATH
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # left over from an outer torchrun
        env.pop(name, None)
    env.update(placement.environment())
    env[RUN_DIR_VARIABLE] = str(run.root)
    env["LORAWATCH_RECORDER_PID"] = str(os.getpid())
    env["LORAWATCH_FIRST_ATTEMPT"] = str(first_attempt)
    env["LORAWATCH_RESUMED_AT"] = "" if resumed_at is None else str(resumed_at)
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    env["PYTHONUNBUFFERED"] = "1"
    return env


def start(command: list[str], env: Mapping[str, str], log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a launcher in a session of its own, its output in a file.

    A session of its own keeps a Ctrl-C in the terminal from reaching the ranks before the recorder has asked them to
    stop together, and lets them outlive the recorder.

    Raises:
        MissingDependency: The program is not there or may not be executed.
    """
    with open(log, "ab") as output:
        try:
            return subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=users_umask(),
            )
        except FileNotFoundError:
            raise MissingDependency(
                f"there is no program {mask_text(command[0])!r}", hint="give its path, or put it on PATH"
            ) from None
        except PermissionError:
            program = mask_text(command[0])
            raise MissingDependency(f"{program!r} may not be executed", hint=f"chmod +x {program}") from None
