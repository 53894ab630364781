"""`lorawatch --record`: a recipe, a sweep of it, or an own command, run headless and recorded."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import click
import msgspec

from lorawatch.cli.machine import gpus_of, open_driver
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.interpreter import own_module
from lorawatch.permissions import users_umask
from lorawatch.processes import ProcessId
from lorawatch.rundir import ENDED, RunDir, RunState

if TYPE_CHECKING:
    from lorawatch.cli.display import Display
    from lorawatch.launch.placement import Placement
    from lorawatch.recipe import Recipe, Strategy
    from lorawatch.rundir import Gpu
    from lorawatch.telemetry.nvml import Nvml


@click.command()
@click.argument("recipe", default="demo", metavar="[RECIPE]")
@click.option("--gpus", metavar="WHICH", help="all, NVML indices such as 0,2, or cpu:N for N ranks on the CPU.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe's value: train.steps=100."
)
@click.option("--sweep", metavar="1,2,4", help="One run after the other with so many GPUs (or CPU ranks) each.")
@click.option(
    "--separate",
    is_flag=True,
    help="Beside each run of several GPUs, as many one-GPU runs at once: what coupling costs.",
)
@click.option("--repeat", type=int, metavar="N", help="Each run so many times, in turns (default: 1).")
@click.option("--hz", type=click.FloatRange(0.5, 10), help="Rate of the power and memory samples (default: 5).")
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "continue"]),
    help="What a loss that is no finite number does (default: stop).",
)
@click.option("--resume", metavar="RUN", help="Go on with a run that ended, from its newest checkpoint.")
@click.option("--from", "from_name", metavar="step-N", help="With --resume: from this checkpoint.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="A word to find the run by; may be repeated.")
@click.option("--detach", is_flag=True, help="Print the run's id and leave it to a recorder in the background.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")
@click.pass_context
def record(
    ctx: click.Context,
    recipe: str,
    gpus: str | None,
    overrides: tuple[str, ...],
    sweep: str | None,
    separate: bool,
    repeat: int | None,
    hz: float | None,
    on_nan: str | None,
    resume: str | None,
    from_name: str | None,
    tags: tuple[str, ...],
    detach: bool,
    as_json: bool,
) -> int:
    """Run a recipe headless and record it; RECIPE is a path or a built-in name (default: demo).

    \b
    lorawatch --record demo --set train.steps=20
    lorawatch --record exxact-8b --set model.weights=random --gpus 0,1
    lorawatch --record exxact-8b --sweep 1,2,4 --separate --repeat 3 --tag lab
    lorawatch --record -- torchrun --nproc-per-node 2 train.py
    lorawatch --record --resume last --set train.steps=200

    The first Ctrl-C stops all ranks at the same step and saves; the second ends them at once.
    """
    from lorawatch.recorder.prepare import prepare_command, prepare_recipe

    own_command: list[str] | None = ctx.obj
    recipe_named = ctx.get_parameter_source("recipe") is not click.core.ParameterSource.DEFAULT
    if gpus is not None:
        overrides = (*overrides, f"launch.gpus={gpus!r}")
    if on_nan is not None:
        overrides = (*overrides, f"train.on_nan={on_nan}")
    if resume is not None:
        if own_command is not None or recipe_named or sweep or separate or repeat is not None or tags:
            raise UsageError(
                "--resume goes on with a run as it is: a recipe, a command, --sweep, --separate, --repeat and --tag do "
                "not go with it",
                hint="leave them out; --set, --gpus, --hz and --on-nan may change what does not touch the work",
            )
        from lorawatch.cli.resume import resume as go_on

        if hz is not None:
            overrides = (*overrides, f"measure.sample_hz={hz}")
        return go_on(resume, overrides=overrides, from_name=from_name, detach=detach, as_json=as_json)
    if from_name is not None:
        raise UsageError("--from names a checkpoint of a run that goes on", hint="--resume RUN names the run")
    nvml = open_driver()
    host_gpus = gpus_of(nvml)
    driver = nvml.driver_version if nvml else None
    runs: list[RunDir] = []
    if own_command is not None:
        if not own_command:
            raise UsageError("`--record --` names no command", hint="lorawatch --record -- python train.py")
        of_a_recipe = sweep or separate or repeat is not None or overrides
        if of_a_recipe or recipe_named:
            raise UsageError(
                "--sweep, --separate, --repeat, --set, --gpus, --on-nan and a recipe do not go with an own command",
                hint="leave them out",
            )
        runs.append(prepare_command(own_command, host_gpus, driver_version=driver, tags=tags, sample_hz=hz or 5.0))
    else:
        from lorawatch import recipe as recipes

        if hz is not None:
            overrides = (*overrides, f"measure.sample_hz={hz}")
        loaded = recipes.load(recipe, overrides)
        places = _places(loaded, host_gpus, _sweep_counts(sweep))
        points = plan_sweep(places, separate=separate, repeat=1 if repeat is None else repeat)
        sweep_id = None
        for count, apart in points:
            strategy: Strategy = "separate" if apart else "ddp" if separate else loaded.launch.strategy
            point = msgspec.structs.replace(loaded, launch=msgspec.structs.replace(loaded.launch, strategy=strategy))
            run, _ = prepare_recipe(point, host_gpus, driver_version=driver, count=count, tags=tags, sweep_id=sweep_id)
            if len(points) > 1 and sweep_id is None:
                info = run.info()
                sweep_id = info.sweep_id = run.run_id
                run.write_info(info)
            runs.append(run)
    if detach:
        return detach_runs(runs, as_json, own_command)
    return supervise_all(runs, as_json=as_json, nvml=nvml, command=own_command)


@click.command(hidden=True)
@click.argument("run_ids", nargs=-1, required=True)
def supervise(run_ids: tuple[str, ...]) -> int:
    """Record prepared runs, one after the other; an own command's arguments come on standard input."""
    runs = [RunDir.find(i) for i in run_ids]
    command = None
    if runs[0].info().own_command and not sys.stdin.isatty():
        from lorawatch.launch.handover import receive

        command = receive(sys.stdin.buffer)
    return supervise_all(runs, as_json=False, nvml=open_driver(), command=command)


def supervise_all(
    runs: Sequence[RunDir], *, as_json: bool, nvml: Nvml | None, command: Sequence[str] | None = None
) -> int:
    """Record prepared runs one after the other, with a display. Returns the first bad exit status.

    Args:
        command: Of an own command's run: its arguments as they were typed.

    Raises:
        UsageError: One was given up before it began.
        RunBusy, RunNotFound: As `RunDir.locked`.
    """
    worst = 0
    for run in runs:  # the queue has somebody who answers for it
        with run.locked():
            state = run.state()
            if state.state in ENDED:  # this process took so long to begin that somebody has judged the run
                raise UsageError(
                    f"run {run.run_id} has ended ({state.state}) before its recorder began", hint="start it again"
                )
            state.recorder = ProcessId.own()
            run.write_state(state)
    for index, run in enumerate(runs):
        state, stopped_by = supervise_one(run, as_json=as_json, nvml=nvml, command=command)
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
    nvml: Nvml | None = None,
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
        nvml=nvml,
        on_begin=lambda: display.start(info),
        on_tick=lambda r: display.update(r.info, r.state, r.view),
        on_event=display.event,
    )
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
    from lorawatch import recipe as recipes
    from lorawatch.launch.placement import Placement

    info = run.info()
    if info.own_command or info.recipe is None:
        return None, None
    uuids = tuple(g.gpu_uuid for g in _in_rank_order(info.gpus, run))
    return recipes.from_dict(info.recipe, run.run_id), Placement(info.device or "cpu", info.world_size, uuids)


def _in_rank_order(gpus: Sequence[Gpu], run: RunDir) -> list[Gpu]:
    from lorawatch.devices import parse_gpus

    used = [g for g in gpus if g.used]
    launch = (run.info().recipe or {}).get("launch")
    asked = parse_gpus(launch["gpus"]).indices if isinstance(launch, dict) else None
    return sorted(used, key=lambda g: asked.index(g.gpu_index)) if asked else used


def _sweep_counts(sweep: str | None) -> list[int | None]:
    if sweep is None:
        return [None]
    try:
        counts = [int(w) for w in sweep.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--sweep {sweep!r} is not a list of GPU counts", hint="for example --sweep 1,2,4")
    return list(counts)


def _places(recipe: Recipe, gpus: Sequence[Gpu], counts: Sequence[int | None]) -> list[tuple[int | None, int]]:
    """Each count with the number of ranks that it comes to; refuses an impossible sweep before its first run."""
    from lorawatch.devices import parse_gpus
    from lorawatch.launch.placement import place

    request = parse_gpus(recipe.launch.gpus)
    return [(count, place(request, gpus, count=count).world_size) for count in counts]


def plan_sweep(
    places: Sequence[tuple[int | None, int]], *, separate: bool, repeat: int
) -> list[tuple[int | None, bool]]:
    """The runs of a sweep in their order.

    In turns, the whole ladder before its next repeat, and separate beside coupled: a machine that warms up or is used by
    others meanwhile then burdens all configurations alike, where repeats in a row would make it a difference between
    them.

    Args:
        places: Each count with its number of ranks.
        separate: A separate run beside each run of several ranks.
        repeat: How often each.

    Returns:
        For each run: the count, and whether its ranks train separately.

    Raises:
        UsageError: No repeat, or nothing to separate.
    """
    if repeat < 1:
        raise UsageError(
            f"--repeat {repeat} is no number of runs", hint="at least 1; 3 give an interval across repeats"
        )
    if separate and all(ranks == 1 for _, ranks in places):
        raise UsageError(
            "--separate compares several GPUs coupled with as many apart, but the run has a single one",
            hint="for example --sweep 1,2 --separate, or --gpus cpu:2 --separate",
        )
    once: list[tuple[int | None, bool]] = []
    for count, ranks in places:
        once.append((count, False))
        if separate and ranks > 1:
            once.append((count, True))
    return once * repeat


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
    for run in runs:  # without a recorder anybody might take it for given up, a resumed one at once
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
