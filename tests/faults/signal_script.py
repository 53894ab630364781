"""Play a row of `fault_signals.TABLE`, and hold what was found against it."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass

from found import Found, one_of
from scene import ENDED, Scene


@dataclass(frozen=True)
class Row:
    """One row of the table; see there for its columns."""

    run: str
    who: str
    signals: tuple[str, ...]
    phase: str
    verdicts: tuple[str, ...]
    named: str
    rcs: tuple[str, ...]
    rows: str

    @classmethod
    def of(cls, line: str) -> Row:
        """Read a line of the table. A column's `|` stands alone between spaces: a pattern has none there."""
        run, who, signals, phase, verdict, named, rc, rows = (c.strip() for c in re.split(r"\s\|\s", line))
        named = "" if named == "-" else named
        return cls(
            run, who, tuple(signals.split()), phase, tuple(verdict.split("/")), named, tuple(rc.split("/")), rows
        )

    @property
    def name(self) -> str:
        return f"{self.run}: {self.who} {' '.join(self.signals)} while {self.phase}"

    @property
    def wanted(self) -> str:
        return f"{' or '.join(self.verdicts)}, rc {' or '.join(self.rcs)}, rows {self.rows}"

    def judge(self, found: Found) -> list[str]:
        """What is not as the row says."""
        wrong = list(found.wrong)
        verdict = f"{found.state} {found.failure or ''}".strip()
        if not one_of(self.verdicts, verdict) and found.state not in self.verdicts:
            wrong.append(f"verdict {verdict}: {found.message}")
        elif self.named and not re.search(self.named, found.message):
            wrong.append(f"the message names {found.message!r}")
        if not one_of(self.rcs, str(found.rc)):
            wrong.append(f"rc {found.rc}")
        return wrong + rows_wrong(found, self.rows)


def rows_wrong(found: Found, rows: str) -> list[str]:
    """What is wrong with the rows and with what is left over, in any case."""
    wrong = []
    if rows == "all" and found.kept != found.made:
        wrong.append(f"{found.kept} rows of {found.made} steps")
    if found.lost or found.doubled or found.unsaid:
        wrong.append(f"rows lost {found.lost}, doubled {found.doubled}, never mentioned {found.unsaid}")
    if found.orphans:
        wrong.append(f"left over: {'; '.join(found.orphans)}")
    return wrong


def play(scene: Scene, row: Row) -> None:
    """Start the run, wait for the phase, send the signals, and wait for the end."""
    last = row.phase == "ending"
    if row.run == "recipe":
        more = {"evaluating": ("train.eval_every=5", "data.eval_share=0.02"), "saving": ("train.checkpoint_every=1",)}
        scene.recipe(30 if last else 20_000, *more.get(row.phase, ()))
    elif row.run == "torchrun":
        scene.torchrun()
    else:
        scene.light(2, 30 if last else 100_000)
    scene.phase(row.phase)
    for number, word in enumerate(row.signals):
        _do(scene, row.who, word, row.signals[number - 1] if number else "")
    scene.finish()


def _do(scene: Scene, who: str, word: str, before: str) -> None:
    """One word of the column `signal`."""
    assert scene.recorder is not None
    if word == "adopt":
        adopt(scene)
    elif word == "stop":
        scene.fault()
        said = scene.lorawatch("stop", scene.root.name)
        if said.returncode:
            scene.found.wrong.append(f"stop: {said.stderr.strip()}")
    elif word == "alone":
        scene.recorder.kill()
        scene.recorder.wait()
    else:
        if before == "INT":  # two signals at the same moment would be one
            scene.until(lambda: (scene.root / "control" / "stop").exists() or ended(scene), 20, "the stop")
        number = signal.SIGRTMIN if word == "RTMIN" else signal.Signals[f"SIG{word}"]
        scene.send(who, signal.Signals(number))
        if (who, word) == ("recorder", "KILL"):
            scene.recorder.wait()
            time.sleep(scene.random.uniform(0, 0.5))
        elif word in ("STOP", "KILL"):
            time.sleep(1.5 if word == "STOP" else 0.2)


def adopt(scene: Scene) -> None:
    """A new recorder takes the run over; returns when it has, or when the run has ended."""
    scene.start("adopt", scene.root.name)
    scene.fault()
    pid = scene.pid("recorder")
    taken = lambda: (scene.state().get("recorder") or {}).get("pid") == pid  # noqa: E731
    scene.until(lambda: taken() or ended(scene), 30, "the adopting recorder")
    if not ended(scene):
        time.sleep(scene.random.uniform(0.2, 1.0))


def ended(scene: Scene) -> bool:
    return scene.state().get("state") in ENDED
