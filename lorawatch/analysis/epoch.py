"""Time and energy of an epoch, and reading a number of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from lorawatch.analysis.interval import Figure

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_TOKENS = re.compile(
    r"[~≈]?\s*(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:e\+?(?P<exponent>[0-9]{1,3}))?\s*(?P<letter>[kmbgt]?)(?:\s*tokens)?",
    re.IGNORECASE | re.ASCII,
)
# No data set has come near this; it also keeps 1e999 from becoming a number of a thousand digits.
_MOST_TOKENS = 10**18
# Of an H100 at its limit of 700 W. Llama-3.1-8B, compiled: its first 0.5, 1, 3.4, 10 and 30 s ran 2.3 to 3.4, 0.9 to 1.4, 1.0 to
# 1.2, 0.7 and 0.3% faster than its steps after a minute and a half; eight layers of a smaller Llama: its first 0.7 s 2.2%.
_WARMING_SHARE = 0.015
_WARMING_S = 20.0
_HEAD_START_S = 0.01
_MOST_SETTLING = 0.05
_HOW = "write it as 50000000, 5,000,000, 5_000_000, 5e7, 750k, 50M, 1.2B or 2T"


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds, with the ends of the 95% interval; None where there is no interval, or no upper end."""

    value: float
    low: float | None
    high: float | None


def settling_share(window_s: float | None) -> float:
    """Share by which a rate may fall after the seconds over which it was measured; 0 where those are not known.

    A card that begins cool and below its power limit is faster than it will be: by some percent until the limit takes effect,
    by one percent while it warms up, for half a minute. An envelope of the measurements of `tests/benchmarks/gpu_epoch.py`.
    """
    if not window_s or window_s <= 0:
        return 0.0
    return min(_WARMING_SHARE / (1 + window_s / _WARMING_S) + _HEAD_START_S / window_s, _MOST_SETTLING)


def epoch_time_s(tokens: float, rate: Figure, window_s: float | None = None) -> Span:
    """Time of an epoch: dataset tokens ÷ tok/s, at the rate and at both ends of its interval.

    Args:
        tokens: Tokens of the data set.
        rate: Tokens a second.
        window_s: Seconds that it was measured over. An epoch takes much longer: the slow end allows for what the
            card may lose by then (`settling_share`).

    Returns:
        Seconds. A rate whose interval reaches 0 leaves no upper end.

    Raises:
        ValueError: Tokens or rate are not above 0.
    """
    if not tokens > 0 or not rate.value > 0:
        raise ValueError("an epoch's time needs tokens and a rate above 0")
    low, high = rate.low, rate.high
    return Span(
        tokens / rate.value,
        None if high is None else tokens / high,
        tokens / low * (1 + settling_share(window_s)) if low is not None and low > 0 else None,
    )


def epoch_energy_kwh(tokens: float, tok_per_j: float) -> float:
    """Energy of an epoch, kWh: dataset tokens ÷ tokens a joule ÷ 3.6e6 joules a kWh.

    Raises:
        ValueError: Tokens or tok/J are not above 0.
    """
    if not tokens > 0 or not tok_per_j > 0:
        raise ValueError("an epoch's energy needs tokens and tok/J above 0")
    return tokens / tok_per_j / 3.6e6


def parse_tokens(text: str) -> int:
    """The number of tokens in `50M`, `5e7`, `1.2B`, `5,000,000`, `5_000_000`, `750k`, `2T` or `~50M tokens`.

    Letters may be of either case, and `G` is `B`. The one reader of token counts: from a command line, a field of a screen,
    and a published table's cell.

    Raises:
        ValueError: Not a whole number above 0; the message says how to write one.
    """
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{shown} is no number of tokens: {_HOW}")
    digits = match["digits"].replace("_", "").replace(",", "")
    # decimal, since 1.1e15 is no whole number of floating-point tokens after a few products
    number = Decimal(digits).scaleb(int(match["exponent"] or 0)) * _FACTORS[match["letter"].lower()]
    if number > _MOST_TOKENS:
        raise ValueError(f"{shown} is more tokens than any data set has: {_HOW}")
    if number <= 0:
        raise ValueError(f"{shown} is no data set: the number of tokens must be above 0")
    if number != number.to_integral_value():
        raise ValueError(f"{shown} ends in a fraction of a token: {_HOW}")
    return int(number)
