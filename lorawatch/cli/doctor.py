"""`lorawatch doctor`."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option(
    "--rebuild-history", "rebuild", is_flag=True, help="Make the history again from the journals; the old one is kept."
)
def doctor(as_json: bool, rebuild: bool) -> int:
    """Say what works on this machine, and what to do about what does not."""
    if rebuild:
        from lorawatch.cli.rebuilding import rebuild as rebuild_history

        rebuild_history()
        return 0
    from lorawatch.doctor.checks import render, run_checks, to_json

    checks = run_checks()
    click.echo(to_json(checks) if as_json else render(checks))
    return 1 if any(c.status == "fail" for c in checks) else 0
