"""`lorawatch estimate`: whether a recipe fits, and how long it will take, before anything starts."""

from __future__ import annotations

from pathlib import Path

import click

from lorawatch.errors import UsageError
from lorawatch.system.user_files import expanded

FORMATS = ("table", "markdown", "csv", "json", "html")


@click.command()
@click.argument("recipe", default="exxact-8b", metavar="[RECIPE]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe's value.")
@click.option("--tokens", metavar="N", help="Tokens of an epoch: 50M, 5e7, 1.2B (default: the data file's, else 50M).")
@click.option("--dataset", type=click.Path(path_type=Path), help="Count the tokens of this data file.")
@click.option(
    "--gpus", "gpu_count", type=click.IntRange(1), help="GPUs that train together (default: all of this machine)."
)
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: table, or by the file's ending.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def estimate(
    recipe: str, overrides: tuple[str, ...], tokens: str | None, dataset: Path | None, gpu_count: int | None,
    form: str | None, output: Path | None,
) -> int:  # fmt: skip
    """Whether a recipe fits into which GPU's memory, and how long an epoch takes; starts nothing.

    \b
    lorawatch estimate exxact-8b
    lorawatch estimate my.yaml --dataset chats.jsonl
    lorawatch estimate exxact-8b --set train.batch_size_per_gpu=8 --tokens 1.2B --format markdown

    The time comes from the own runs and the published tables that did the same work.
    """
    from lorawatch.analysis.epoch import parse_tokens
    from lorawatch.cli.machine import gpus_of, open_driver
    from lorawatch.comparing import documents
    from lorawatch.comparing.estimating import estimate_recipe
    from lorawatch.comparing.gather import gather
    from lorawatch.recipe import loading

    loaded = loading.load(recipe, overrides)
    try:
        count = parse_tokens(tokens or "50M")
    except ValueError as error:
        raise UsageError(str(error)) from None
    own = expanded(loaded.data.source)
    if tokens is None and dataset is None and own.is_file():
        dataset = own
    if dataset is not None:
        from lorawatch.launch.counting import count_tokens

        counted = count_tokens(dataset, loaded.model.name, loaded.data.sequence_length)
        count = counted.tokens
        click.echo(f"{dataset}: {counted.words}", err=True)
    gpus = gpus_of(open_driver())
    estimate = estimate_recipe(loaded, gather(), gpus, count, gpu_count or max(len(gpus), 1))
    documents.deliver(documents.of_estimate(estimate), form, output)
    return 0
