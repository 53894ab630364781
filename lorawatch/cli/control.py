"""`lorawatch`, `attach` and `replay` open the screens; `stop` and `adopt` act on a run that lives."""

from __future__ import annotations

import os
import sys
import time

import click

from lorawatch.errors import LorawatchError, UsageError
from lorawatch.run.directory import ENDED, RunDir
from lorawatch.run.liveness import liveness
from lorawatch.run.records import Event

_FLOOD = 1000


@click.command()
@click.argument("run", default="last")
@click.option("--now", is_flag=True, help="End every process at once, without a save.")
@click.option("--wait", is_flag=True, help="Return when the run has ended.")
@click.option("--host-gone", is_flag=True, help="The run's host does not come back: judge the run by what it left.")
def stop(run: str, now: bool, wait: bool, host_gone: bool) -> int:
    """Stop RUN (an id, its beginning, a name, or `last`) at its next step and save; asking twice ends it at once."""
    run_dir = RunDir.find(run)
    if host_gone:
        return _give_up(run_dir)
    status = liveness(run_dir)
    if status.kind == "ended":
        raise LorawatchError(
            f"run {run_dir.run_id} has ended already ({run_dir.state().state})",
            hint=f"lorawatch show {run_dir.run_id} says how",
        )
    if status.kind == "over":
        raise LorawatchError(
            f"run {run_dir.run_id} has no process left, and no recorder saw its end",
            hint=f"lorawatch show {run_dir.run_id} says what it left",
        )
    again = run_dir.requested("stop")
    try:
        run_dir.request("kill" if now or again else "stop")
    except OSError as error:
        raise LorawatchError(
            f"run {run_dir.run_id} cannot be asked: {error.strerror or error}: {run_dir.control}",
            hint="only users who may write to its directory can stop it",
        ) from None
    if status.kind == "unrecorded":
        # The ranks see the request by themselves; writing down how they ended is a recorder's work.
        name = run_dir.run_id
        if now or again:
            words = f"run {name} has no recorder that could end it at once: lorawatch adopt {name} does"
        else:
            words = f"run {name} stops at its next step; it has no recorder: lorawatch adopt {name} records its end"
        click.echo(words, err=True)
        return 0
    where = f" ({status.words})" if status.words else ""
    click.echo(f"run {run_dir.run_id}: {'ending at once' if now or again else 'stopping at the next step'}{where}")
    if status.kind == "silent":
        click.echo(
            f"if {status.host} does not come back: lorawatch stop {run_dir.run_id} --host-gone judges the run by what it left",
            err=True,
        )
        return 0
    if wait:
        _wait_for_end(run_dir)
    return 0


def _give_up(run: RunDir) -> int:
    from lorawatch.recorder.catching_up import catch_up, judge_lost

    state = judge_lost(run)
    click.echo(f"run {run.run_id}: {state.state}" + (f": {state.message}" if state.message else ""))
    catch_up()
    return 0


def _wait_for_end(run: RunDir) -> None:
    while run.root.is_dir():
        kind = liveness(run).kind
        if kind == "ended":
            return
        if kind in ("unrecorded", "over"):
            raise LorawatchError(
                f"run {run.run_id} has lost its recorder", hint=f"lorawatch adopt {run.run_id} records its end"
            )
        time.sleep(0.2)
    raise LorawatchError(f"run {run.run_id} was deleted meanwhile")


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
    from lorawatch.cli.summary import print_summary
    from lorawatch.cli.supervise import exit_code, make_display
    from lorawatch.run.follower import Follower
    from lorawatch.watching.final import read_final
    from lorawatch.watching.watch import Watch

    run_dir = RunDir.find(run)
    watch = Watch(run_dir.info())
    follower = Follower(run_dir, feed=watch.feed)
    display = make_display(as_json)
    display.start(run_dir.info())
    begun = silent = False
    try:
        while True:
            state = run_dir.state()  # before the poll: lines written before the end are then seen
            lines = follower.poll()
            if begun or len(lines) <= _FLOOD:  # a long past is the curve, not a flood of old events
                for event in (line for line in lines if isinstance(line, Event)):
                    display.event(event)
            begun = True
            watch.info = run_dir.info()
            watch.final = read_final(run_dir.run_id) if state.state in ENDED else None
            display.update(watch, state)
            if state.state in ENDED:
                break
            silent = _check_recorder(run_dir, silent)
            time.sleep(0.25)
    except FileNotFoundError:
        raise LorawatchError(f"run {run_dir.run_id} was deleted meanwhile") from None
    except KeyboardInterrupt:
        display.stop()
        click.echo(f"left; run {run_dir.run_id} goes on", err=True)
        return 0
    finally:
        display.stop()
    if not as_json:
        print_summary(run_dir.run_id)
    return exit_code(state, None)


def _check_recorder(run: RunDir, silent: bool) -> bool:
    """See that the run has a recorder. Returns whether its host is silent, which is reported once.

    Raises:
        LorawatchError: Its recorder is gone, or the run was deleted.
    """
    if not run.root.is_dir():
        raise LorawatchError(f"run {run.run_id} was deleted meanwhile")
    status = liveness(run)
    if status.kind in ("unrecorded", "over"):
        raise LorawatchError(
            f"run {run.run_id} has lost its recorder", hint=f"lorawatch adopt {run.run_id} takes it over"
        )
    if status.kind == "silent" and not silent:
        click.echo(f"run {run.run_id}: {status.words}; it may still go on there", err=True)
    return status.kind == "silent"


@click.command()
@click.argument("run", default="last")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")
def adopt(run: str, as_json: bool) -> int:
    """Resume recording a RUN whose recorder died while its ranks went on training.

    Ctrl-C then stops the run, as it does where it was started.
    """
    from lorawatch.cli.machine import open_driver
    from lorawatch.cli.supervise import exit_code, supervise_one

    state, stopped_by = supervise_one(RunDir.find(run), as_json=as_json, driver=open_driver(), adopt=True)
    return exit_code(state, stopped_by)


@click.command()
@click.argument("run", default="last")
@click.option(
    "--speed", type=click.FloatRange(0.1, 1000), default=1.0, help="Seconds of the run a second (default: 1)."
)
def replay(run: str, speed: float) -> int:
    """Watch RUN (an id, its beginning, a name, or `last`) again on the Live screen; space pauses, arrows seek."""
    run_dir = RunDir.find(run)
    if not any(run_dir.journal.glob("*.jsonl")):
        raise LorawatchError(
            f"run {run_dir.run_id} has no journal left to replay",
            hint=f"lorawatch show {run_dir.run_id} has its figures",
        )
    return open_tui(run_dir.run_id, replay_speed=speed)


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
