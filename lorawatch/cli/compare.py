"""`lorawatch compare`: which GPUs, how many, how long, at what price, from the own runs beside published tables."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lorawatch.errors import UsageError

FORMATS = ("table", "markdown", "csv", "json", "html")


@click.command()
@click.option("--baseline", metavar="WHICH", help='What others are measured against, by its label: "1 x RTX PRO 4500".')
@click.option("--tokens", metavar="N", default="50M", help="Tokens of an epoch: 50M, 5e7, 1.2B (default: 50M).")
@click.option("--dataset", type=click.Path(path_type=Path), help="Count the tokens of this data file instead.")
@click.option("--price-kwh", type=float, metavar="PRICE", help="Price of a kilowatt-hour.")
@click.option(
    "--gpu-price", "gpu_prices", multiple=True, metavar="SKU=PRICE", help="Price of one GPU; may be repeated."
)
@click.option("--host-price", type=float, default=0.0, metavar="PRICE", help="Price of the machine around the GPUs.")
@click.option("--life-years", type=float, default=4.0, help="How long hardware serves (default: 4 years).")
@click.option("--utilisation", type=float, default=0.7, help="Share of that time it works (default: 0.7).")
@click.option("--name", metavar="RECIPE", help="Only runs of this recipe.")
@click.option("--tag", metavar="T", help="Only runs with this tag.")
@click.option("--sweep", metavar="RUN", help="Only runs of this sweep, by its first run's id.")
@click.option("--published/--no-published", default=True, help="Published tables beside the own runs (default: yes).")
@click.option(
    "--extrapolate", metavar="N,…", help="Fit GPU counts that were not measured, such as 8,16; labelled extrapolated."
)
@click.option("--unfinished", is_flag=True, help="Take runs that failed or were stopped too, marked.")
@click.option("--force", is_flag=True, help="Show configurations of other work too, marked.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: table, or by the file's ending.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def compare(
    baseline: str | None, tokens: str, dataset: Path | None, price_kwh: float | None, gpu_prices: tuple[str, ...],
    host_price: float, life_years: float, utilisation: float, name: str | None, tag: str | None, sweep: str | None,
    published: bool, extrapolate: str | None, unfinished: bool, force: bool, form: str | None, output: Path | None,
) -> int:  # fmt: skip
    """Compare GPU models and counts: scaling, tokens per joule, time and cost of an epoch, with 95% intervals.

    \b
    lorawatch compare
    lorawatch compare --tokens 1.2B --price-kwh 0.30 --gpu-price "RTX PRO 4500=2600" -o purchase.html
    lorawatch compare --name exxact-8b --extrapolate 4,8 --format markdown

    Only configurations of the same work stand beside each other: model shape, precision, LoRA, sequence length, batch
    per GPU, engine, token definition. Others are left out and named with what differs; --force shows them, marked. Runs
    with the tag `simulated` are labelled so.
    """
    from lorawatch.analysis.epoch import parse_tokens
    from lorawatch.comparing import documents, formats
    from lorawatch.comparing.comparison import compare as put_together
    from lorawatch.comparing.gather import gather
    from lorawatch.comparing.rows import Prices
    from lorawatch.comparing.work import one_line

    try:
        count = parse_tokens(tokens)
        prices = Prices(price_kwh, _prices(gpu_prices), host_price, life_years, utilisation)
        prices.check()
    except ValueError as error:
        raise UsageError(str(error)) from None
    counts = _counts(extrapolate)
    gathered = gather(name=name, tag=tag, sweep=sweep, unfinished=unfinished, with_published=published)
    tokens_from = ""
    if dataset is not None:
        from lorawatch.comparing.comparison import choose_baseline
        from lorawatch.launch.counting import count_tokens

        base = choose_baseline(gathered.configurations, baseline)
        counted = count_tokens(dataset, base.model, base.sequence_length)
        count, tokens_from = counted.tokens, f"{one_line(str(dataset))}: {counted.words}"
        click.echo(tokens_from, err=True)
    comparison = put_together(
        gathered.configurations, baseline=baseline, tokens=count, prices=prices, force=force,
        extrapolate=counts, excluded=gathered.excluded, differences=gathered.differences, tokens_from=tokens_from,
    )  # fmt: skip
    form = documents.format_of(form, output)
    text = formats.write(comparison, form, width=_width() if output is None else None)
    documents.save(text, output, f"{len(comparison.rows)} configurations")
    return 0


def _width() -> int | None:
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _prices(given: tuple[str, ...]) -> dict[str, float]:
    prices = {}
    for text in given:
        sku, sep, price = text.rpartition("=")
        try:
            prices[sku.strip()] = float(price)
        except ValueError:
            sep = ""
        if not sep or not sku.strip():
            raise UsageError(
                f"--gpu-price {text!r} is not SKU=PRICE", hint='for example --gpu-price "RTX PRO 4500=2600"'
            )
    return prices


def _counts(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        counts = [int(w) for w in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--extrapolate {text!r} is not a list of GPU counts", hint="for example --extrapolate 4,8")
    return counts
