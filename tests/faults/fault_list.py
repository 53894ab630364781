"""What a case of the matrix is that is no row of `fault_signals`: a function that plays it, and what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from found import Found, one_of
from scene import Scene
from signal_script import rows_wrong


@dataclass(frozen=True)
class Fault:
    """One case.

    Attributes:
        name: `what: where or when`.
        act: Starts the run, brings the fault about and waits for the end; what else it sees goes into `scene.found.wrong`.
        verdicts: State, and the failure behind it; several may be right. Empty: no run is judged.
        said: What the run's message says, a regular expression.
        printed: What the commands print.
        rcs: Exit statuses that are right.
        rows: As in `fault_signals`.
    """

    name: str
    act: Callable[[Scene], None]
    verdicts: tuple[str, ...]
    said: str
    printed: str
    rcs: tuple[int, ...]
    rows: str

    @property
    def wanted(self) -> str:
        verdict = " or ".join(self.verdicts) or "refused"
        return f"{verdict}{f', rc {self.rcs[0]}' if self.rcs else ''}, rows {self.rows}"

    def judge(self, found: Found) -> list[str]:
        """What is not as it should be."""
        wrong = list(found.wrong)
        verdict = f"{found.state} {found.failure or ''}".strip()
        if self.verdicts and not one_of(self.verdicts, verdict):
            wrong.append(f"verdict {verdict}: {found.message}")
        if not re.search(self.said, found.message, re.S):
            wrong.append(f"the message is {found.message!r}")
        if not re.search(self.printed, found.printed, re.S):
            wrong.append(f"not printed: {self.printed!r}, but {found.printed[-300:]!r}")
        if self.rcs and found.rc not in self.rcs:
            wrong.append(f"rc {found.rc}")
        return wrong + rows_wrong(found, self.rows)


FAULTS: list[Fault] = []


def fault(
    name: str, *verdicts: str, said: str = "", printed: str = "", rc: tuple[int, ...] = (), rows: str = "written"
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Add a function to the matrix; see `Fault` for what the words mean."""

    def add(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS.append(Fault(name, act, verdicts, said, printed, rc, rows))
        return act

    return add
