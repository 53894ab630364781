"""The base of all journal lines, and what their fields may say."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# What a field may say: a line outside of these bounds is a broken line, for who watches a run as for the history, which
# derives its conditions from them. They hold off what no machine measures, and sums of many rows stay within 64 bits.
UnixTime = Annotated[float, Meta(ge=0, le=4_102_444_800)]
"""Until the year 2100; a clock that was never set begins in 1970."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Attempt = Annotated[int, Meta(ge=0, le=1_000_000)]
Rank = Annotated[int, Meta(ge=0, lt=65_536)]
WorldSize = Annotated[int, Meta(ge=1, le=65_536)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1024)]
"""Up to the last 64-bit integer that a double can hold: file systems without an end report about as much free space."""
Number = Annotated[float, Meta(ge=-1e39, le=1e39)]
"""Whatever fits a 32-bit float."""
Amount = Annotated[float, Meta(ge=0, le=1e39)]
Percent = Annotated[float, Meta(ge=0, le=1e6)]
Watts = Annotated[float, Meta(ge=0, le=1e6)]
Joules = Annotated[float, Meta(ge=0, le=1e15)]
Celsius = Annotated[float, Meta(ge=-300, le=10_000)]
Megahertz = Annotated[int, Meta(ge=0, le=1_000_000)]
Mask = Annotated[int, Meta(ge=0, lt=2**53)]


class Record(msgspec.Struct, omit_defaults=True, tag_field="t", kw_only=True):
    """Base of all journal lines."""
