"""`lorawatch --record`: a recipe, a sweep of it, or an own command, run headless and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from lorawatch.cli.machine import gpus_of, open_driver
from lorawatch.cli.supervise import detach_runs, supervise_all
from lorawatch.cli.sweep import places_of, plan_sweep, sweep_counts
from lorawatch.errors import UsageError
from lorawatch.run.directory import RunDir

if TYPE_CHECKING:
    from lorawatch.recipe.schema import Strategy
    from lorawatch.telemetry.driver import GpuDriver


@click.command()
@click.argument("recipe", default="demo", metavar="[RECIPE]")
@click.option(
    "--gpus",
    metavar="WHICH",
    help="all, GPU indices as doctor lists them such as 0,2, or cpu:N for N ranks on the CPU.",
)
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
    own_command: list[str] | None = ctx.obj
    recipe_named = ctx.get_parameter_source("recipe") is not click.core.ParameterSource.DEFAULT
    if gpus is not None:
        overrides = (*overrides, f"launch.gpus={gpus!r}")
    if on_nan is not None:
        overrides = (*overrides, f"train.on_nan={on_nan}")
    of_a_sweep = bool(sweep or separate or repeat is not None)
    if resume is not None:
        if own_command is not None or recipe_named or of_a_sweep or tags:
            raise UsageError(
                "--resume goes on with a run as it is: a recipe, a command, --sweep, --separate, --repeat and --tag do "
                "not go with it",
                hint="leave them out; --set, --gpus, --hz and --on-nan may change what does not touch the work",
            )
        from lorawatch.cli.resume import resume as go_on

        return go_on(resume, overrides=_sampled(overrides, hz), from_name=from_name, detach=detach, as_json=as_json)
    if from_name is not None:
        raise UsageError("--from names a checkpoint of a run that goes on", hint="--resume RUN names the run")
    driver = open_driver()
    if own_command is not None:
        runs = [_prepared_command(own_command, driver, tags, hz, alone=not (of_a_sweep or overrides or recipe_named))]
    else:
        plan = SweepPlan(sweep, separate, 1 if repeat is None else repeat)
        runs = _prepared_recipe(recipe, _sampled(overrides, hz), plan, driver, tags)
    if detach:
        return detach_runs(runs, as_json, own_command)
    return supervise_all(runs, as_json=as_json, driver=driver, command=own_command)


class SweepPlan(NamedTuple):
    """Which runs of a recipe were asked for."""

    counts: str | None
    """`1,2,4`: GPUs of each."""
    separate: bool
    repeat: int


def _sampled(overrides: tuple[str, ...], hz: float | None) -> tuple[str, ...]:
    return overrides if hz is None else (*overrides, f"measure.sample_hz={hz}")


def _prepared_command(
    command: list[str], driver: GpuDriver | None, tags: Sequence[str], hz: float | None, *, alone: bool
) -> RunDir:
    """The run of an own command.

    Args:
        alone: Nothing was given that only a recipe's run has.

    Raises:
        UsageError: There is no command, or something else with it.
    """
    from lorawatch.recorder.prepare import prepare_command

    host_gpus = gpus_of(driver)
    if not command:
        raise UsageError("`--record --` names no command", hint="lorawatch --record -- python train.py")
    if not alone:
        raise UsageError(
            "--sweep, --separate, --repeat, --set, --gpus, --on-nan and a recipe do not go with an own command",
            hint="leave them out",
        )
    driver_version = driver.driver_version if driver else None
    return prepare_command(command, host_gpus, driver_version=driver_version, tags=tags, sample_hz=hz or 5.0)


def _prepared_recipe(
    name: str, overrides: Sequence[str], plan: SweepPlan, driver: GpuDriver | None, tags: Sequence[str]
) -> list[RunDir]:
    """The runs of a recipe, in the order in which they are recorded; those of a sweep share its id."""
    from lorawatch.recipe import loading
    from lorawatch.recorder.prepare import prepare_recipe

    host_gpus = gpus_of(driver)
    driver_version = driver.driver_version if driver else None
    loaded = loading.load(name, overrides)
    places = places_of(loaded, host_gpus, sweep_counts(plan.counts))
    points = plan_sweep(places, separate=plan.separate, repeat=plan.repeat)
    runs: list[RunDir] = []
    sweep_id = None
    for count, apart in points:
        strategy: Strategy = "separate" if apart else "ddp" if plan.separate else loaded.launch.strategy
        point = msgspec.structs.replace(loaded, launch=msgspec.structs.replace(loaded.launch, strategy=strategy))
        run, _ = prepare_recipe(
            point, host_gpus, driver_version=driver_version, count=count, tags=tags, sweep_id=sweep_id
        )
        if len(points) > 1 and sweep_id is None:
            info = run.info()
            sweep_id = info.sweep_id = run.run_id
            run.write_info(info)
        runs.append(run)
    return runs
