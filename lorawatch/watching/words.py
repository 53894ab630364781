"""A run's figures in words, the same on the Live screen and in the headless table."""

from __future__ import annotations

from lorawatch.run.directory import ENDED
from lorawatch.text.numbers import MISSING, number
from lorawatch.watching.frame import Head


def tok_s_words(head: Head) -> str:
    """`10,717 tok/s`; of a run that has ended and is not in the history yet, of which steps."""
    return f"{number(head.tok_s)} tok/s" + (" in the last steps" if _not_final(head) else "")


def power_words(head: Head) -> str:
    """`771 W`; `171 W over the whole run` of a run that ended without a measured step."""
    return f"{number(head.power_w)} W" + (" over the whole run" if head.figures_of == "run" else "")


def energy_words(head: Head) -> str:
    """`energy 8.5 kJ`, with another name where it is not that of the measured steps."""
    amount = joules(head.energy_j)
    if head.figures_of == "run":
        return f"run energy {amount}"
    return f"recorded energy {amount}" if _not_final(head) else f"energy {amount}"


def joules(value: float | None) -> str:
    """`8.5 kJ`, `1.25 kWh`."""
    if value is None:
        return MISSING
    return f"{value / 3.6e6:.2f} kWh" if value >= 1e6 else f"{value / 1000:.1f} kJ"


def _not_final(head: Head) -> bool:
    # of a run whose recorder is gone the ranks may go on: it is shown as lost, and its figures are of now
    return head.figures_of == "recent" and head.state in ENDED and head.recorder_alive
