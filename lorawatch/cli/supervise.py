"""Recording of prepared runs, in this process or in one of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click
import msgspec

from lorawatch.cli.machine import open_driver
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.run.directory import ENDED, RunDir, RunInfo, RunState
from lorawatch.system.interpreter import own_module
from lorawatch.system.permissions import users_umask
from lorawatch.system.processes import ProcessId

if TYPE_CHECKING:
    from lorawatch.cli.display import Display
    from lorawatch.launch.placement import Placement
    from lorawatch.recipe.schema import Recipe
    from lorawatch.recorder.recorder import Recorder
    from lorawatch.run.directory import Gpu
    from lorawatch.run.records import AnyLine
    from lorawatch.telemetry.driver import GpuDriver
    from lorawatch.watching.watch import Watch


@click.command(hidden=True)
@click.argument("run_ids", nargs=-1, required=True)
def supervise(run_ids: tuple[str, ...]) -> int:
    """Record prepared runs, one after the other; an own command's arguments come on standard input."""
    runs = [RunDir.find(i) for i in run_ids]
    command = None
    if runs[0].info().own_command and not sys.stdin.isatty():
        from lorawatch.launch.handover import receive

        command = receive(sys.stdin.buffer)
    return supervise_all(runs, as_json=False, driver=open_driver(), command=command)


def supervise_all(
    runs: Sequence[RunDir], *, as_json: bool, driver: GpuDriver | None, command: Sequence[str] | None = None
) -> int:
    """Record prepared runs one after the other, with a display. Returns the first bad exit status.

    Args:
        command: Of an own command's run: its arguments as they were typed.

    Raises:
        UsageError: One was given up before it began.
        RunBusy, RunNotFound: As `RunDir.locked`.
    """
    worst = 0
    for run in runs:  # while they wait, the runs have a recorder that is alive
        with run.locked():
            state = run.state()
            if state.state in ENDED:  # this process took so long to begin that another command has judged the run
                raise UsageError(
                    f"run {run.run_id} has ended ({state.state}) before its recorder began", hint="start it again"
                )
            state.recorder = ProcessId.own()
            run.write_state(state)
    for index, run in enumerate(runs):
        state, stopped_by = supervise_one(run, as_json=as_json, driver=driver, command=command)
        code = exit_code(state, stopped_by)
        worst = worst or code
        if stopped_by or state.state == "stopped" or state.exit_code in (2, 3):
            _drop(runs[index + 1 :], "the sweep was ended before this run")
            break
    if len(runs) > 1:
        from lorawatch.cli.sweep import print_sweep

        print_sweep([r.run_id for r in runs], as_json=as_json)
    return worst


def supervise_one(
    run: RunDir,
    *,
    as_json: bool = False,
    driver: GpuDriver | None = None,
    adopt: bool = False,
    command: Sequence[str] | None = None,
) -> tuple[RunState, signal.Signals | None]:
    """Record one prepared run, or adopt a living one, with a display and signal handling.

    Args:
        command: Of an own command's run that is started: its arguments as they were typed.

    Returns:
        The final state, and the signal that asked for the stop, if one did.
    """
    from lorawatch.cli.summary import print_end
    from lorawatch.recorder.recorder import Recorder

    info = run.info()
    recipe, placement = _as_prepared(run)
    display = make_display(as_json)
    recorder = Recorder(
        run,
        placement=placement,
        recipe=recipe,
        command=command,
        driver=driver,
        on_begin=lambda: display.start(info),
        on_tick=lambda r: display.update(shown.now(r), r.state),
        on_event=display.event,
    )
    shown = _Shown(recorder)
    got: list[signal.Signals] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        got.append(signal.Signals(number))
        recorder.stop()

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, on_signal) for s in handled}
    hup_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # losing the terminal is no reason to end a run
    try:
        state = recorder.adopt() if adopt else recorder.run()
    finally:
        display.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGHUP, hup_before)
    print_end(run, recorder, as_json=as_json)
    return state, got[0] if got else None


class _Shown:
    """What the display draws of a recorder's run. What goes wrong in it shows where it is drawn: it costs the display,
    and never the recording."""

    def __init__(self, recorder: Recorder) -> None:
        from lorawatch.watching.watch import Watch

        self._watch = Watch(recorder.info, view=recorder.view)
        self._view = recorder.view
        self._error: Exception | None = None
        self._view.observer = self._take

    def _take(self, line: AnyLine) -> None:
        try:
            self._watch.take(line)
        except Exception as error:  # noqa: BLE001  raised again when the display is drawn
            self._error, self._view.observer = error, None

    def now(self, recorder: Recorder) -> Watch:
        """The run as it is known now.

        Raises:
            Exception: What went wrong with one of its lines.
        """
        if self._error is not None:
            raise self._error
        self._watch.info = recorder.info
        return self._watch


def exit_code(state: RunState, stopped_by: signal.Signals | None) -> int:
    """The process's exit status for a run's end."""
    if state.state == "completed":
        return 0
    if state.state == "stopped":
        return 128 + stopped_by if stopped_by else 0
    return state.exit_code or 1


def make_display(as_json: bool) -> Display:
    """JSON lines, a live table where stdout is a terminal, else plain lines."""
    from lorawatch.cli.display import JsonLines, LiveTable, PlainLines

    if as_json:
        return JsonLines(sys.stdout)
    if sys.stdout.isatty():
        return LiveTable()
    return PlainLines(sys.stdout)


def _as_prepared(run: RunDir) -> tuple[Recipe | None, Placement | None]:
    from lorawatch.launch.placement import Placement
    from lorawatch.recipe import loading

    info = run.info()
    if info.own_command or info.recipe is None:
        return None, None
    gpus = _in_rank_order(info)
    placement = Placement(
        info.device or "cpu",
        info.world_size,
        tuple(g.gpu_uuid for g in gpus),
        vendor=gpus[0].vendor if gpus else Placement.vendor,
    )
    return loading.from_dict(info.recipe, run.run_id), placement


def _in_rank_order(info: RunInfo) -> list[Gpu]:
    """The GPUs of a recipe's run, rank by rank: in the order in which the recipe names them."""
    from lorawatch.recipe.devices import parse_gpus

    used = info.used_gpus
    launch = (info.recipe or {}).get("launch")
    asked = parse_gpus(launch["gpus"]).indices if isinstance(launch, dict) else None
    return sorted(used, key=lambda g: asked.index(g.gpu_index)) if asked else used


def detach_runs(runs: Sequence[RunDir], as_json: bool, command: Sequence[str] | None = None) -> int:
    """Hand the runs to a recorder in a session of its own.

    Args:
        command: Of an own command's run: its arguments as they were typed.

    Raises:
        LorawatchError: The recorder does not take it.
    """
    with open(runs[0].logs / "recorder.log", "ab") as log:
        recorder = subprocess.Popen(
            own_module("lorawatch", "supervise", *(r.run_id for r in runs)),
            stdin=subprocess.DEVNULL if command is None else subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=users_umask(),  # what it starts for the user has the user's
        )
    if recorder.stdin is not None and command is not None:
        from lorawatch.launch.handover import send

        send(command, recorder.stdin, runs[0].logs / "recorder.log")
    for run in runs:  # without a recorder another command would take it for given up, a resumed one at once
        with run.locked():
            state = run.state()
            if state.recorder in (None, ProcessId.own()) and state.state not in ENDED:
                state.recorder = ProcessId.of(recorder.pid)
                run.write_state(state)
    if as_json:
        click.echo(msgspec.json.encode({"type": "detached", "run_ids": [r.run_id for r in runs]}).decode())
    else:
        click.echo("\n".join(r.run_id for r in runs))
        click.echo(f"lorawatch attach {runs[0].run_id} follows it; lorawatch stop {runs[0].run_id} stops it", err=True)
    return 0


def _drop(runs: Sequence[RunDir], why: str) -> None:
    """Runs that were prepared and will not start."""
    from lorawatch.storage.ingest import finish_run

    for run in runs:
        run.write_state(RunState(state="stopped", message=why))
        try:
            finish_run(run)
        except LorawatchError:
            continue  # its marker stays, so that the next command brings it in
