"""One line a figure: name, value, bound, and whether it holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass
class Report:
    """Collects a script's figures; `close` prints the verdict and gives the exit status."""

    title: str
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"\n{self.title}", flush=True)

    def figure(
        self, name: str, value: float, unit: str, *, most: float | None = None, least: float | None = None
    ) -> None:
        """Print one figure beside its bound."""
        good = (most is None or value <= most) and (least is None or value >= least)
        bound = (
            f"≤ {most:,g} {unit}" if most is not None else f"≥ {least:,g} {unit}" if least is not None else "no bound"
        )
        print(f"  {'ok  ' if good else 'MISS'} {name:<58} {value:>12,.4g} {unit:<10} ({bound})", flush=True)
        if not good:
            self.failed.append(name)

    def close(self) -> None:
        """Exit with 1 where a bound was missed."""
        sys.exit(1 if self.failed else 0)
