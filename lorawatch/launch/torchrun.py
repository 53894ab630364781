"""torchrun as a run's launcher: the ranks of a recipe, on this host.

Facts behind the flags: torchrun registers SIGHUP again, so it needs to know which signals to handle; workers of a
restart read the last attempt's addresses unless the rendezvous store is not shared;
the agent dies of a broken pipe, so that its output goes to a file and nothing reads it through a pipe.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorawatch.errors import MissingDependency
from lorawatch.launch import torchrun_log
from lorawatch.launch.launcher import Attempt
from lorawatch.launch.placement import Placement
from lorawatch.run.directory import RUN_DIR_VARIABLE, RunDir
from lorawatch.run.verdict import LauncherEnd
from lorawatch.system.interpreter import SAFE_PATH, own_module
from lorawatch.text.sanitize import encodable

if TYPE_CHECKING:
    from lorawatch.recipe.schema import Recipe

LOG_NAME = "torchrun.log"
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


class Torchrun:
    """Starts a recipe's ranks under torchrun.

    Args:
        run: The run's directory.
        recipe, placement: What runs where; None where it is not to be started.
        world_size: How many ranks it has.
    """

    log_name = LOG_NAME
    local_ranks = True

    def __init__(self, run: RunDir, recipe: Recipe | None, placement: Placement | None, *, world_size: int) -> None:
        self._run, self._recipe, self._placement = run, recipe, placement
        self.world_size: int | None = world_size

    @property
    def recorded_command(self) -> Sequence[str]:
        """torchrun's command line, in characters that can be written down."""
        return [encodable(word) for word in self.command()]

    def command(self) -> list[str]:
        """torchrun's command line.

        Raises:
            MissingDependency: torch is not installed.
        """
        assert self._recipe is not None
        assert self._placement is not None
        launch = self._recipe.launch
        separate = launch.strategy == "separate"
        return arguments(self._run, self._placement, max_restarts=launch.max_restarts, separate=separate)

    def environment(self, attempt: Attempt) -> dict[str, str]:
        """This process's environment, with what the placement and the guards need."""
        assert self._placement is not None
        first = environment(self._run, self._placement, first_attempt=attempt.number, resumed_at=attempt.resumed_at)
        return {**first, **attempt.variables}

    def end(self, exit_code: int | None, log: str) -> LauncherEnd:
        """The agent's end, with what its log says of ranks that left no exit record."""
        return LauncherEnd(
            exit_code=exit_code,
            agent_signal=torchrun_log.agent_signal(log),
            rank_ends=torchrun_log.rank_ends(log),
            exception=torchrun_log.last_exception(log),
            rank_exception=torchrun_log.last_exception(log, of_a_rank=True),
        )


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
