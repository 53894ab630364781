"""The kinds of work there are to compare within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.comparing import work as works
from lorawatch.comparing.comparison import choose_baseline
from lorawatch.comparing.configuration import Configuration


@dataclass(frozen=True, slots=True)
class Kind:
    """One piece of work, and whoever did it.

    Attributes:
        words: The work in one line.
        configurations: Those that stand beside each other.
        baseline: What they are measured against unless another is chosen.
        created_at_s: When it was done last.
    """

    words: str
    configurations: tuple[Configuration, ...]
    baseline: Configuration
    created_at_s: float


def kinds(configurations: Sequence[Configuration]) -> list[Kind]:
    """The kinds of work, the latest first; a configuration whose table does not tell its work is none of its own."""
    groups: dict[tuple[tuple[str, str], ...], list[Configuration]] = {}
    for found in configurations:
        if found.work:
            groups.setdefault(tuple(sorted(found.work.items())), []).append(found)
    of = [
        Kind(works.words(g[0].work), tuple(g), choose_baseline(g), max(c.created_at_s for c in g))
        for g in groups.values()
    ]
    return sorted(of, key=lambda kind: -kind.created_at_s)
