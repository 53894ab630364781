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
        self,
        name: str,
        value: float,
        unit: str,
        *,
        most: float | None = None,
        least: float | None = None,
        ci95: float | None = None,
    ) -> None:
        """Print one figure beside its bound, with the half width of its 95% interval where there is one."""
        good = (most is None or value <= most) and (least is None or value >= least)
        bound = (
            f"≤ {most:,g} {unit}" if most is not None else f"≥ {least:,g} {unit}" if least is not None else "no bound"
        )
        about = "" if ci95 is None else f" ± {ci95:,.2g}"
        mark = "    " if most is None and least is None else "ok  " if good else "MISS"
        print(f"  {mark} {name:<58} {value:>12,.4g}{about} {unit:<10} ({bound})", flush=True)
        if not good:
            self.failed.append(name)

    def close(self) -> None:
        """Exit with 1 where a bound was missed."""
        sys.exit(1 if self.failed else 0)
