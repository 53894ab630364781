"""Configurations grouped by their work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorawatch.comparing import work as works
from lorawatch.comparing.comparison import choose_baseline
from lorawatch.comparing.configuration import Configuration


@dataclass(frozen=True, slots=True)
class Kind:
    """One piece of work and the configurations that did it.

    Attributes:
        words: The work in one line.
        configurations: Those that can be compared with each other.
        baseline: What they are compared with unless another is chosen.
        created_at_s: When the latest of them ran.
    """

    words: str
    configurations: tuple[Configuration, ...]
    baseline: Configuration
    created_at_s: float


def kinds(configurations: Sequence[Configuration]) -> list[Kind]:
    """The kinds of work, the latest first; a configuration without known work is in none."""
    groups: dict[tuple[tuple[str, str], ...], list[Configuration]] = {}
    for configuration in configurations:
        if configuration.work:
            groups.setdefault(tuple(sorted(configuration.work.items())), []).append(configuration)
    by_work = [
        Kind(works.words(g[0].work), tuple(g), choose_baseline(g), max(c.created_at_s for c in g))
        for g in groups.values()
    ]
    return sorted(by_work, key=lambda kind: -kind.created_at_s)
