"""`lorawatch`, `attach` and `replay` open the screens; `stop` and `adopt` act on a run that lives."""

from __future__ import annotations

import os
import sys
import time

import click

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.rundir import ENDED, RunDir


@click.command()
@click.argument("run", default="last")
@click.option("--now", is_flag=True, help="End every process at once, without a save.")
@click.option("--wait", is_flag=True, help="Return when the run has ended.")
def stop(run: str, now: bool, wait: bool) -> int:
    """Stop RUN (an id, its beginning, a name, or `last`) at its next step and save; asking twice ends it at once."""
    found = RunDir.find(run)
    state = found.state()
    if state.state in ENDED:
        raise LorawatchError(f"run {found.run_id} has ended already ({state.state})", hint="lorawatch show tells how")
    again = found.requested("stop")
    alive = state.recorder is not None and state.recorder.alive()
    found.request("kill" if now or again else "stop")
    if not alive:
        # The ranks see the request for themselves; who writes down how they ended is a recorder's work.
        click.echo(f"run {found.run_id} has no recorder: lorawatch adopt {found.run_id} records its end", err=True)
        return 0
    click.echo(f"run {found.run_id}: {'ending at once' if now or again else 'stopping at the next step'}")
    while wait and found.state().state not in ENDED:
        time.sleep(0.2)
    return 0


@click.command()
@click.argument("run", default="last")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")
@click.option("--plain", is_flag=True, help="A table in place instead of the screens.")
def attach(run: str, as_json: bool, plain: bool) -> int:
    """Follow RUN (an id, its beginning, a name, or `last`), with its whole curve; leaving it does not stop it.

    On a terminal this opens the Live screen; elsewhere, or with --plain or --json, it prints until the run ends.
    """
    if not as_json and not plain and sys.stdin.isatty() and sys.stdout.isatty():
        return open_tui(RunDir.find(run).run_id)
    from lorawatch.cli.record import exit_code, make_display
    from lorawatch.cli.summary import print_summary
    from lorawatch.live import Follower

    found = RunDir.find(run)
    follower = Follower(found)
    display = make_display(as_json)
    display.start(found.info())
    shown = 0
    try:
        while True:
            state = found.state()  # before the poll: lines written before the end are then seen
            lines = follower.poll()
            if shown == 0 and len(lines) > 1000:
                shown = len(follower.view.events)  # the past is the curve, not a flood of old news
            for event in list(follower.view.events)[shown:]:
                display.event(event)
            shown = len(follower.view.events)
            display.update(found.info(), state, follower.view)
            if state.state in ENDED:
                break
            if state.recorder is not None and not state.recorder.alive():
                display.stop()
                raise LorawatchError(
                    f"run {found.run_id} has lost its recorder", hint=f"lorawatch adopt {found.run_id} takes it over"
                )
            time.sleep(0.25)
    except KeyboardInterrupt:
        display.stop()
        click.echo(f"left; run {found.run_id} goes on", err=True)
        return 0
    finally:
        display.stop()
    if not as_json:
        print_summary(found.run_id)
    return exit_code(state, None)


@click.command()
@click.argument("run", default="last")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")
def adopt(run: str, as_json: bool) -> int:
    """Record on a RUN whose recorder died while its ranks trained on."""
    from lorawatch.cli.machine import open_driver
    from lorawatch.cli.record import exit_code, supervise_one

    state, stopped_by = supervise_one(RunDir.find(run), as_json=as_json, nvml=open_driver(), adopt=True)
    return exit_code(state, stopped_by)


@click.command()
@click.argument("run", default="last")
@click.option(
    "--speed", type=click.FloatRange(0.1, 1000), default=1.0, help="Seconds of the run a second (default: 1)."
)
def replay(run: str, speed: float) -> int:
    """Watch RUN (an id, its beginning, a name, or `last`) again on the Live screen; space pauses, arrows seek."""
    found = RunDir.find(run)
    if not any(found.journal.glob("*.jsonl")):
        raise LorawatchError(
            f"run {found.run_id} has no journal left to replay", hint=f"lorawatch show {found.run_id} has its figures"
        )
    return open_tui(found.run_id, replay_speed=speed)


def open_tui(run_id: str | None = None, *, replay_speed: float | None = None) -> int:
    """Open the screens until the user leaves them.

    Raises:
        UsageError: This is not a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "the screens need a terminal, and this is none",
            hint="lorawatch --record runs a recipe without one; lorawatch --help lists all commands",
        )
    from lorawatch.screens.app import run_app

    return run_app(run_id, replay_speed=replay_speed, debug=bool(os.environ.get("LORAWATCH_DEBUG")))
