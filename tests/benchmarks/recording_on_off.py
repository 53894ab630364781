"""In a rank of the recording benchmark: the callback on and off in turns, recorder and screens frozen while it is off.

`sitecustomize` installs it before the rank's own program begins; see gpu_recording.py. Every rank takes its turns at the
same steps. Rank 0 freezes and wakes the others' processes and writes each half's seconds into a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

PLAN_VARIABLE = "LORAWATCH_BENCHMARK_ON_OFF"
WORKER = "lorawatch.training.worker"
WARM_UP, SETTLE = 24, 6


def plan(folder: Path, pairs: int, steps: int) -> dict[str, str]:
    """The environment in which a run's ranks take turns.

    Args:
        folder: Empty; `pids` there names what is to be frozen, `halves.jsonl` will hold the result.
        steps: Timed ones of a half.
    """
    (folder / "sitecustomize.py").write_text(
        f"import sys\nif {WORKER!r} in sys.orig_argv:\n    sys.path.append({str(Path(__file__).parent)!r})\n"
        "    import recording_on_off\n    recording_on_off.install()\n"
    )
    given = {"folder": str(folder), "pairs": pairs, "steps": steps}
    return {PLAN_VARIABLE: json.dumps(given), "PYTHONPATH": os.pathsep.join([str(folder), *_python_path()])}


def total_steps(pairs: int, steps: int) -> int:
    """Of the whole run: the halves, and a step more to end recorded."""
    return WARM_UP + 2 * pairs * (SETTLE + steps) + 1


def turns(pairs: int) -> list[bool]:
    """Whether each half is recorded; whoever comes first changes, so that a drift burdens both alike."""
    return [on for pair in range(pairs) for on in ((False, True) if pair % 2 else (True, False))]


def install() -> None:
    """Put the callback that takes turns in StepCallback's place."""
    from lorawatch.training import callback

    callback.StepCallback = _in_turns(callback.StepCallback)  # type: ignore[misc]


def _python_path() -> list[str]:
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def _in_turns(recorded: type) -> type:
    import torch

    given = json.loads(os.environ[PLAN_VARIABLE])
    folder, steps, order = Path(given["folder"]), given["steps"], turns(given["pairs"])
    first = os.environ["RANK"] == "0"

    class InTurns(recorded):  # type: ignore[misc]
        meter: Any = None
        began = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control = super().on_step_end(args, state, control, **kwargs)
            half, at = divmod(state.global_step - WARM_UP, SETTLE + steps)
            if half < 0 or half > len(order):
                return control
            if at == 0:
                if half > 0:
                    self.note(half - 1)
                self.turn(half == len(order) or order[half])
            elif at == SETTLE and half < len(order):
                self.wait()
                self.began = time.perf_counter()
            return control

        def note(self, half: int) -> None:
            self.wait()
            if first:
                with open(folder / "halves.jsonl", "a") as file:
                    file.write(json.dumps({"on": order[half], "seconds": time.perf_counter() - self.began}) + "\n")

        def turn(self, on: bool) -> None:
            """Measure, journal and look for requests, or do nothing of it."""
            if on and self._meter is None:
                self._meter = self.meter
                self._meter.mark()
                self._observer.__dict__.pop("tick", None)
            elif not on and self._meter is not None:
                self.read_back()
                self.meter, self._meter = self._meter, None
                self._observer.tick = lambda: None
            if first:
                for pid in self.watchers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)

        def watchers(self) -> list[int]:
            """The processes that are frozen in turns, once all of them are there."""
            deadline = time.monotonic() + 60
            while not (folder / "pids").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            return [int(pid) for pid in (folder / "pids").read_text().split()]

        def wait(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()

    return InTurns
