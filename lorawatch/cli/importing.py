"""`lorawatch import`: a published table, into the history."""

from __future__ import annotations

from pathlib import Path

import click


class _WithColumns(click.Command):
    """Lists the columns at the end of `--help`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from lorawatch.published.table_csv import column_help

        with formatter.section("Columns (sku, gpu_count and one figure are needed; empty is not printed)"):
            formatter.write_dl(list(column_help().items()))


@click.command("import", cls=_WithColumns)
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--source", help="Who published it, for rows without a source column (default: the file's name).")
@click.option("--replace", is_flag=True, help="Exchange what the history has of the same source.")
@click.option("--dry-run", is_flag=True, help="Check the table and change nothing in the history.")
def import_table(files: tuple[Path, ...], source: str | None, replace: bool, dry_run: bool) -> int:
    """Take a published table, a CSV file, into the history.

    A row is a configuration's figures, or its epoch time over a data set. Cells are kept as printed; where the table's own
    tok/s, watts and data set sizes give another figure, the cell is named. One broken cell, and nothing is imported.
    Several files of one source are one table.

    \b
    lorawatch import table.csv --source "Our lab"
    lorawatch sql "SELECT sku, gpu_count, scaling, computed_scaling, differs FROM v_published"
    """
    from lorawatch.published.checks import checked_cells, differences
    from lorawatch.published.printed import compact
    from lorawatch.published.table_csv import read_csv
    from lorawatch.storage.published import check_source, replace_source
    from lorawatch.storage.skus import short_name
    from lorawatch.text.sanitize import clean

    named = clean(source or "").strip() or None
    rows = [row for file in files for row in read_csv(file, source=named, named=short_name)]
    gone = (check_source if dry_run else replace_source)(rows, replace=replace)
    for name in dict.fromkeys(row.source for row in rows):
        own_rows = [row for row in rows if row.source == name]
        skus = list(dict.fromkeys(row.sku for row in own_rows))
        click.echo(f"{name}: {_count(len(own_rows), 'row')}, {_count(len(skus), 'GPU model')}: {', '.join(skus)}")
    if gone:
        click.echo(f"in place of {_count(gone, 'row')} that the history had of the same source")
    wrong = differences(rows)
    click.echo(
        f"{_count(checked_cells(rows), 'cell')} computed from others; {_count(len(wrong), 'cell')} printed otherwise"
    )
    width = max((len(d.row.what) for d in wrong), default=0)
    for d in wrong:
        computed = compact(d.computed, like=d.printed)
        click.echo(f"  {d.row.what:<{width}}  {d.column:<14}  printed {d.printed}, computed {computed}  ({d.reason})")
    if dry_run:
        click.echo("nothing was imported (--dry-run)", err=True)
    return 0


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# The command's name is a Python keyword, so that it cannot be written as one.
globals()["import"] = import_table
