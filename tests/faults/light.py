"""A launcher with ranks that journal steps as a real rank does, without torch: for faults of recorder, disk and processes.

    python light.py launch RANKS STEPS STEP_S      what `lorawatch --record --` starts
    python light.py rank STEPS STEP_S              one rank, by torchrun's environment

Each rank adds a byte to `$LIGHT_MADE/attempt_A-rank-R` for every step that it has made, on another file system than the run's,
so that a test can hold what is recorded against what was made, and rank 0 leaves `saved-STEP` there when the ranks stop together.
`$LIGHT_REPORTS` names the ranks that report, `0,1`; the others only make steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lorawatch.run.directory import RunDir
from lorawatch.run.records import RankStarted, Step
from lorawatch.system.processes import ProcessId
from lorawatch.training.observer import Observer
from lorawatch.training.rank_info import RankInfo


def rank(steps: int, step_s: float) -> int:
    rank_info = RankInfo.from_environment()
    folder = Path(os.environ["LIGHT_MADE"])
    made = open(folder / f"attempt_{rank_info.attempt}-rank-{rank_info.rank}", "ab", buffering=0)  # noqa: SIM115
    if str(rank_info.rank) not in os.environ.get("LIGHT_REPORTS", str(rank_info.rank)).split(","):
        for _ in range(steps):
            time.sleep(step_s)
            made.write(b".")
        return 0
    observer = Observer(RunDir(Path(os.environ["LORAWATCH_RUN_DIR"])), rank_info).start()
    observer.append(
        RankStarted(
            at=time.time(), attempt=rank_info.attempt, rank=rank_info.rank, local_rank=rank_info.local_rank,
            world_size=rank_info.world_size, host=ProcessId.own().host, pid=os.getpid(), device="cpu", steps_total=steps,
            process=ProcessId.own(),
        )
    )  # fmt: skip
    observer.phase("training")
    for number in range(1, steps + 1):
        time.sleep(step_s)
        observer.append(
            Step(
                attempt=rank_info.attempt, rank=rank_info.rank, step=number, ended_at=time.time(), duration_s=step_s or 1e-4,
                tokens=64, nonpad_tokens=64, label_tokens=63, loss=2.0, phase="warmup" if number == 1 else "train",
            )
        )  # fmt: skip
        made.write(b".")
        if observer.stopping.step_completed(number, steps):
            if rank_info.rank == 0:
                (folder / f"saved-{number}").touch()
            break
    observer.close(float(os.environ.get("LORAWATCH_DISK_WAIT_S", "0")))
    return 0


def launch(ranks: int, steps: str, step_s: str) -> int:
    """Start the ranks and wait for them; as torchrun does, end the others where one fails."""
    processes = []
    for number in range(ranks):
        env = {**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
        processes.append(subprocess.Popen([sys.executable, __file__, "rank", steps, step_s], env=env))
    while True:
        codes = [p.poll() for p in processes]
        if any(codes):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait()
            return 1
        if None not in codes:
            return 0
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        sys.exit(rank(int(sys.argv[2]), float(sys.argv[3])))
    sys.exit(launch(int(sys.argv[2]), *sys.argv[3:5]))
