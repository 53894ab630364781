"""`lorawatch sql` and `lorawatch snapshot`: the history for everybody's own questions."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

FORMATS = ("table", "csv", "json", "parquet")


@click.command()
@click.argument("query")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", help="Default: table.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
@click.option(
    "--timeout", type=click.FloatRange(0.1), default=60.0, help="Seconds until the query is ended (default: 60)."
)
def sql(query: str, form: str, output: Path | None, timeout: float) -> int:
    """Ask the history with one read-only SELECT; QUERY is `-` for stdin.

    \b
    lorawatch sql "SELECT * FROM v_runs LIMIT 5"
    lorawatch sql "SELECT step, loss FROM v_steps WHERE run_id = '…'" --format csv -o loss.csv
    lorawatch sql "DESCRIBE v_steps"
    """
    from lorawatch.cli.bounded import run_bounded
    from lorawatch.system import home

    text = _stdin() if query == "-" else query

    def work(on_answered: Callable[[], None]) -> None:
        from lorawatch.storage.export import write_result

        write_result(text, form, output, timeout_s=timeout, on_answered=on_answered)

    folders = [home.home()] if output is None else [home.home(), Path(os.path.realpath(output)).parent]
    run_bounded(work, timeout, folders)
    return 0


@functools.cache
def _stdin() -> str:
    """Standard input can be read once, and a command may run once more after a damaged history was made again."""
    return sys.stdin.read()


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE.")
def snapshot(file: Path, force: bool) -> int:
    """Copy the history into FILE, for the duckdb command line, Harlequin or a colleague; runs may go on."""
    from lorawatch.storage.snapshot import snapshot as copy

    copy(file, force=force)
    click.echo(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0
