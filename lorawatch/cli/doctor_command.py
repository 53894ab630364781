"""`lorawatch doctor`."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(as_json: bool) -> int:
    """Say what works on this machine, and what to do about what does not."""
    from lorawatch.cli.doctor import render, run_checks, to_json

    checks = run_checks()
    click.echo(to_json(checks) if as_json else render(checks))
    return 1 if any(c.status == "fail" for c in checks) else 0
