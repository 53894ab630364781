"""`lorawatch runs` and `lorawatch show`: what ran before."""

from __future__ import annotations

from dataclasses import asdict

import click

from lorawatch.text.masking import mask_command_line
from lorawatch.text.numbers import duration, gib, hanging, number
from lorawatch.text.sanitize import clean, json_text


def catch_up() -> None:
    """Bring in what dead recorders left in their journals; a history that is held now is caught up later."""
    from lorawatch.system import home

    folder = home.open_runs_folder()
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    from lorawatch.errors import HistoryDamaged, LorawatchError
    from lorawatch.recorder.catching_up import catch_up as bring_in

    try:
        bring_in()
    except HistoryDamaged:
        raise
    except (LorawatchError, OSError) as error:
        click.echo(f"lorawatch: some runs are not in the history yet: {error}", err=True)


@click.command()
@click.option("-n", "--limit", type=click.IntRange(1), default=20, help="How many, latest first (default: 20).")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--state", help="Only runs in this state: completed, failed, running …")
@click.option("--name", help="Only runs of this recipe name.")
@click.option("--tag", help="Only runs with this tag.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def runs(limit: int, everything: bool, state: str | None, name: str | None, tag: str | None, as_json: bool) -> int:
    """List the runs in the history, latest first."""
    catch_up()
    from lorawatch.run.liveness import note
    from lorawatch.storage.queries import list_runs

    rows = list_runs(limit=None if everything else limit, state=state, name=name, tag=tag)
    for row in rows:
        row["note"] = note(row["run_id"], row["state"])
    if as_json:
        for row in rows:
            click.echo(json_text(row))
        return 0
    if not rows:
        click.echo("no run yet; start one: lorawatch --record", err=True)
        return 0
    width = max(len("name"), *(min(len(r["name"]), 16) for r in rows))
    click.echo(
        f"{'run':<9} {'name':<{width}} {'state':<10} {'where':<22} {'steps':>6} {'tok/s':>9} {'tok/J':>6} {'loss':>7} "
        f"{'VRAM':>9} {'time':>8}"
    )
    for row in rows:
        sku = (row["sku"] or "").removeprefix("NVIDIA ")
        where = f"{row['gpu_count']}×{sku}" if sku else f"{row['world_size'] or 1}×{row['device'] or 'process'}"
        click.echo(
            f"{row['run_id']:<9} {clean(row['name'])[:width]:<{width}} {row['state']:<10} {where[:22]:<22} "
            f"{row['steps'] or 0:>6} {number(row['tok_s']):>9} {number(row['tok_per_j'], 1):>6} "
            f"{number(row['final_loss'], 3):>7} {gib(row['peak_vram_bytes']):>9} {duration(row['duration_s']):>8}"
        )
    for row in rows:
        if row["note"]:
            click.echo(f"{row['run_id']}: {row['note']}", err=True)
    return 0


@click.command()
@click.argument("run", default="last")
@click.option("--events", type=click.IntRange(0), default=20, help="How many events to show (default: 20).")
@click.option(
    "--evaluations", type=click.IntRange(0), default=20, help="How many evaluations, the latest (default: 20)."
)
@click.option("--recipe", is_flag=True, help="Show the recipe as it was resolved.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(run: str, events: int, evaluations: int, recipe: bool, as_json: bool) -> int:
    """Show RUN (an id, its beginning, a name, or `last`): what was asked, measured, and what happened."""
    catch_up()
    from lorawatch.errors import RunNotFound
    from lorawatch.run.liveness import note
    from lorawatch.storage.curves import run_ranks
    from lorawatch.storage.queries import run_evaluations, run_events, run_figures

    run_id, folder = _resolve(run)
    row = run_figures(run_id)
    if row is None:
        hint = "it is starting; lorawatch attach follows it" if folder else "lorawatch runs lists them"
        raise RunNotFound(f"run {run_id!r} is not in the history", hint=hint)
    row["note"] = note(run_id, row["state"])
    if row.get("command"):
        row["command"] = mask_command_line(row["command"])  # an older version kept it as it was typed
    happened, evaluated = run_events(run_id, events), run_evaluations(run_id)
    if as_json:
        ranks = [{**facts, **facts.pop("readings")} for facts in map(asdict, run_ranks(run_id, deadline_s=2.0))]
        more = {"ranks": ranks, "evaluations": evaluated, "events": happened, "run_dir": folder}
        click.echo(json_text({**row, **more}))
        return 0
    from lorawatch.text.run_summary import evaluation_lines, event_words, summary_lines

    for name, value in summary_lines(row):
        click.echo(hanging(f"{name:<14} ", value))
    if row.get("tags"):
        click.echo(f"{'tags':<14} {', '.join(row['tags'])}")
    names = ("lorawatch", "torch", "driver")
    versions = [f"{n} {row[f'{n}_version']}" for n in names if row.get(f"{n}_version")]
    if versions:
        click.echo(f"{'versions':<14} {', '.join(versions)}")
    if folder:
        click.echo(f"{'run directory':<14} {folder}")
    if evaluated and evaluations:
        click.echo("\nevaluations")
        for line in evaluation_lines(evaluated, evaluations):
            click.echo(f"  {line}")
    if happened:
        click.echo("\nevents")
        start = row.get("started_at_s") or happened[0]["at_s"]
        for event in happened:
            began = f"  {duration(max(event['at_s'] - start, 0)):>8}  {event['severity']:<8} "
            click.echo(hanging(began, event_words(event, row["world_size"])))
    if recipe and row.get("recipe"):
        import msgspec

        from lorawatch.recipe.yaml_text import write_yaml

        click.echo("\nrecipe")
        text = write_yaml(msgspec.json.decode(row["recipe"]))
        click.echo("\n".join(f"  {line}" for line in text.splitlines()))
    return 0


def _resolve(name: str) -> tuple[str, str | None]:
    """A run's id and its directory; runs whose directory was deleted are still in the history."""
    from lorawatch.errors import RunNotFound
    from lorawatch.run.directory import RunDir

    try:
        run_dir = RunDir.find(name)
    except RunNotFound:
        from lorawatch.storage.queries import find_run

        known = find_run(name)
        if known is None:
            raise
        return known, None
    return run_dir.run_id, str(run_dir.root)
