"""A rank's entry point: `python -m lorawatch.training.worker RUN_DIR [separate]`, started by torchrun.

Before torch is imported, the process sets its guards: the rank ends with its agent, its output cannot end it, its
stacks can be requested, and it leaves an exit record however it ends.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from lorawatch.errors import LossNotFinite, NoSuitableGpu
from lorawatch.recipe import loading
from lorawatch.run.directory import RunDir
from lorawatch.system.quiet import QUIET
from lorawatch.training import compile_cache, disk_wait, guards
from lorawatch.training.observer import Observer
from lorawatch.training.outcome import ExitReport
from lorawatch.training.rank_info import RankInfo, hide_other_ranks


def main() -> NoReturn:
    """Run one rank, and end the process."""
    guards.die_with_parent()
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["separate"]):
        sys.exit("usage: python -m lorawatch.training.worker RUN_DIR [separate] (torchrun starts it)")
    run = RunDir(Path(sys.argv[1]).absolute())
    rank_info = RankInfo.from_environment()
    if sys.argv[2:]:
        rank_info = rank_info.as_separate()
    if rank_info.trains_alone:
        hide_other_ranks(rank_info)
    guards.redirect_output(run.rank_log(rank_info.attempt, rank_info.rank))
    guards.quiet_streams()
    guards.dump_stacks_on_signal(run.stacks / f"rank-{rank_info.rank}.txt")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    compile_cache.set_up(rank_info.world_size)
    report = ExitReport(run.exit_record(rank_info.attempt, rank_info.rank), rank_info)
    observer = Observer(run, rank_info).start()

    def terminated(number: int) -> None:
        # The agent sends this to the other ranks when one has died. From any other sender it is what ends the run.
        report.step = observer.stopping.completed
        report.ended("stopped", signal=number)
        _exit(observer, report, 128 + number)

    guards.on_termination(terminated)
    try:
        _train(run, rank_info, observer, report)
    except SystemExit as end:
        report.step = observer.stopping.completed
        code = end.code if isinstance(end.code, int) else 1
        report.failed(RuntimeError(f"something in the process called sys.exit({end.code!r})"))
        _exit(observer, report, code or 1)
    except BaseException as error:  # noqa: BLE001  every end leaves a record
        import traceback

        report.step = observer.stopping.completed
        code = report.failed(error)
        traceback.print_exception(error)
        # torchrun restarts the ranks after any other status, and they would reach the same loss.
        _exit(observer, report, 0 if isinstance(error, LossNotFinite) else code)
    _exit(observer, report, 0, wait_s=disk_wait.disk_wait_s())


def _train(run: RunDir, rank_info: RankInfo, observer: Observer, report: ExitReport) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record  # torch's import starts here

    @record
    def entry() -> None:
        import torch

        info = run.info()
        recipe = loading.load(str(run.recipe))
        device = info.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise NoSuitableGpu(
                f"the run is for GPUs, but torch {torch.__version__} cannot use any",
                hint="install a torch build for your driver, or run on the CPU: --gpus cpu:2; see `lorawatch doctor`",
            )
        from lorawatch.training import gpu_memory
        from lorawatch.training.trainer import train

        if device == "cuda":
            gpu = torch.device(device, rank_info.device_index)
            report.out_of_memory_hint = partial(gpu_memory.out_of_memory_hint, recipe, rank_info.model_world_size, gpu)
        outcome = train(run, recipe, rank_info, observer, device)
        report.step = outcome.step
        report.ended("stopped" if outcome.stopped else "completed")

    entry()


def _exit(observer: Observer, report: ExitReport, code: int, *, wait_s: float = 0.0) -> NoReturn:
    """End the process without the interpreter's teardown, where a broken process group or driver could hang.

    Args:
        observer: Is closed.
        report: Is written.
        code: The process's exit status.
        wait_s: Seconds to wait for a full disk to take the last lines.
    """
    unwritten = observer.close(wait_s)
    report.write(steps_made=observer.steps_made, unwritten=unwritten)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
