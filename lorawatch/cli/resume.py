"""`lorawatch --record --resume RUN`: a run that ended goes on from a checkpoint."""

from __future__ import annotations

import click

from lorawatch.cli.machine import gpus_of, open_driver
from lorawatch.run.directory import RunDir


def resume(name: str, *, overrides: tuple[str, ...], from_name: str | None, detach: bool, as_json: bool) -> int:
    """Check the run and its checkpoint, then record it on as `--record` does. Returns the exit status.

    Args:
        name: The run: an id, its beginning, a name, or `last`.
        overrides: `a.b=c`; only what may change.
        from_name: The checkpoint, `step-40`; default: the newest.

    Raises:
        UsageError: It cannot go on; says why, and what would do.
    """
    from lorawatch.cli.supervise import detach_runs, supervise_all
    from lorawatch.recorder.resuming import prepare_resumption

    run = RunDir.find(name)
    driver = open_driver()
    resumption = prepare_resumption(
        run,
        gpus_of(driver),
        overrides=overrides,
        from_name=from_name,
        driver_version=driver.driver_version if driver else None,
    )
    changes = "".join(f", {path} {was} → {now}" for path, was, now in resumption.changed)
    click.echo(
        f"run {run.run_id} goes on after step {resumption.start.step}, attempt {resumption.attempt}{changes}", err=True
    )
    if detach:
        return detach_runs([run], as_json)
    return supervise_all([run], as_json=as_json, driver=driver)
