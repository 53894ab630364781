"""The figures that the history works out in SQL, each written once.

They are the same figures as the functions of `lorawatch.analysis` compute; `tests/unit/test_one_definition.py` holds each
against its function.
"""

from __future__ import annotations

MEAN_LOSS = "coalesce(sum(loss * label_tokens) / nullif(sum(label_tokens) FILTER (loss IS NOT NULL), 0), avg(loss))"
"""`analysis.loss.mean_loss` of the ranks' rows of one step, over the columns `loss` and `label_tokens`."""


def rate(amount: str, seconds: str) -> str:
    """`analysis.throughput.rate`: NULL where one of the two is NULL or no time has passed."""
    return f"{amount} / nullif(greatest({seconds}, 0), 0)"


STEP_RATE = rate("tokens", "duration_s")
"""tok/s of a row with the columns `tokens` and `duration_s`."""


def whole_sum(column: str) -> str:
    """`analysis.missing.whole_sum` of a column: NULL where one value is."""
    return f"CASE WHEN count({column}) = count(*) THEN sum({column}) END"


def share(mask: int) -> str:
    """`analysis.clocks.share` of the samples that have reasons, over the column `event_reasons`."""
    return f"avg(((event_reasons & {mask:d}) != 0)::INTEGER)"


def percentiles(column: str, *shares: float) -> str:
    """`analysis.throughput.percentile` of a column, a list with a value a share."""
    return f"quantile_cont({column}, [{', '.join(map(str, shares))}])"


def bin_number(place: str, begin: str, width: str, count: str) -> str:
    """`analysis.thinning.bin_number`; the last of so many bins also has what lies on its right edge."""
    return f"greatest(least(floor(({place} - {begin}) / {width}), {count} - 1), 0)::INTEGER"


def extremes(column: str, only: str = "") -> str:
    """The lowest and the highest value of a bin, as `analysis.thinning.Bins` keeps them.

    Args:
        only: A FILTER clause, where not all values count.
    """
    return f"min({column}) {only}, max({column}) {only}"


def spread(column: str, only: str = "") -> str:
    """The lowest, the highest and the mean value of a bin; `only` as for `extremes`."""
    return f"{extremes(column, only)}, avg({column}) {only}"


def filled_in(text: str) -> str:
    """SQL text with the expressions in place of their names in double braces."""
    for name, expression in (("mean_loss", MEAN_LOSS), ("step_rate", STEP_RATE), ("token_sum", whole_sum("tokens"))):
        text = text.replace("{{" + name + "}}", expression)
    return text
