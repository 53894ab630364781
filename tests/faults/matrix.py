"""Faults on real runs: who or what breaks, in which phase, and what lorawatch makes of it.

    python tests/faults/matrix.py [--only WORDS] [--share 10] [--jobs 2] [--seed 0] [--list] [--markdown FILE] [--python PYTHON]

Each case starts a run as a user would, brings its fault about, and looks at the run's end from outside (`scene.py`): the verdict
and exit status, the processes that are left, each row that a rank made, and the seconds from the fault to the final state on
disk. The cases are the table `fault_signals.TABLE` and the functions that `fault_list.fault` marks. What needs root or namespaces
is skipped by name where there are none. Exit status 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import functools
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fault_disks  # noqa: F401  each adds its cases to FAULTS
import fault_files  # noqa: F401
import fault_hostile  # noqa: F401
import fault_left  # noqa: F401
import fault_signals
import fault_users  # noqa: F401
from fault_list import FAULTS
from found import Found, Skip, Trouble
from scene import Scene, scene
from signal_script import Row, play

SECONDS_P95 = 5.0


@dataclass(frozen=True)
class Case:
    """One fault, what brings it about, and what is right."""

    name: str
    act: Callable[[Scene], None]
    wanted: str
    judge: Callable[[Found], list[str]]


@dataclass(frozen=True)
class Result:
    """What a case came to; `skipped` and `trouble` say why it came to nothing."""

    case: Case
    found: Found
    wrong: tuple[str, ...] = ()
    skipped: str = ""
    trouble: str = ""
    took_s: float = 0.0


def cases() -> list[Case]:
    """All cases, in the order of their tables."""
    rows = [Row.of(line) for line in fault_signals.TABLE.strip().splitlines()[1:] if line.strip()]
    signals = [Case(row.name, functools.partial(play, row=row), row.wanted, row.judge) for row in rows]
    faults = [Case(f.name, f.act, f.wanted, f.judge) for f in FAULTS]
    return [*signals, *faults]


def run(case: Case, folder: Path, python: str, seed: int) -> Result:
    """Play one case and judge it."""
    began = time.monotonic()
    found, skipped, trouble = Found(), "", ""
    with scene(folder, python, seed) as stage:
        try:
            case.act(stage)
            found = stage.look() if stage.recorder is not None else stage.found
        except Skip as reason:
            skipped = str(reason)
        except Trouble as error:
            found, trouble = stage.found, f"{error}; {stage.output()[-300:]}"
        except Exception:
            found, trouble = stage.found, traceback.format_exc(limit=-3)
    wrong = () if skipped or trouble else tuple(case.judge(found))
    return Result(case, found, wrong, skipped, trouble, time.monotonic() - began)


def chosen(everything: Sequence[Case], only: Iterable[str], share: int, seed: int) -> list[Case]:
    """The cases with all these words in their names; one in `share` of them, spread over the tables."""
    words = list(only)
    left = [c for c in everything if all(w in c.name for w in words)]
    return left[random.Random(seed).randrange(share) :: share] if share > 1 else left


def play_all(picked: Sequence[Case], python: str, jobs: int, seed: int) -> list[Result]:
    """Play them side by side; each is printed as it ends."""
    done = 0

    def one(number: int) -> Result:
        nonlocal done
        result = run(picked[number], Path(top) / str(number), python, seed * 100_003 + number)
        done += 1
        print(f"{done:>4}/{len(picked)} {_mark(result)} {picked[number].name}  {_got(result)}", flush=True)
        for line in (*result.wrong, *result.trouble.splitlines()):
            print(f"          {line}", flush=True)
        return result

    with tempfile.TemporaryDirectory(prefix="matrix-") as top, ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(len(picked))))


def _mark(result: Result) -> str:
    if result.skipped:
        return "skipped"
    return "TROUBLE" if result.trouble else "WRONG  " if result.wrong else "right  "


def _got(result: Result) -> str:
    f = result.found
    if result.skipped:
        return f"({result.skipped})"
    seconds = "" if f.seconds is None else f"  {f.seconds:.1f} s"
    rows = f"  {f.kept}/{f.made} rows" if f.made else ""
    return f"{f.state} {f.failure or ''} rc {f.rc}{rows}{seconds}"


def counts(results: Sequence[Result]) -> list[tuple[str, float, float | None]]:
    """What is counted over all cases: name, value, and the most that is right."""
    played = [r for r in results if not r.skipped]
    seconds = sorted(r.found.seconds for r in played if r.found.seconds is not None)
    p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))] if seconds else 0.0
    return [
        ("cases", len(results), None),
        ("skipped", sum(bool(r.skipped) for r in results), None),
        ("not played to their end", sum(bool(r.trouble) for r in played), 0),
        ("wrong verdicts, statuses and words", sum(bool(r.wrong) for r in played), 0),
        ("processes left over", sum(len(r.found.orphans) for r in played), 0),
        ("rows lost", sum(r.found.lost + r.found.unsaid for r in played), 0),
        ("rows doubled", sum(r.found.doubled for r in played), 0),
        ("rows made", sum(r.found.made for r in played), None),
        ("seconds to the final state, p50", seconds[len(seconds) // 2] if seconds else 0.0, None),
        ("seconds to the final state, p95", p95, SECONDS_P95),
        ("seconds to the final state, most", seconds[-1] if seconds else 0.0, None),
    ]


def markdown(results: Sequence[Result], took_s: float) -> str:
    """The table of all cases and the counts."""
    lines = ["| case | right | found | rc | left over | rows | s | |", "|---|---|---|---|---|---|---|---|"]
    for r in results:
        f = r.found
        found = (r.skipped and f"skipped: {r.skipped}") or f"{f.state} {f.failure or ''}".strip()
        seconds = "" if f.seconds is None else f"{f.seconds:.1f}"
        why = "; ".join(r.wrong) or r.trouble[:120]
        cells = [r.case.name, r.case.wanted, found, f.rc, len(f.orphans), f"{f.kept}/{f.made}", seconds, why]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    lines += ["", f"{took_s / 60:.1f} minutes", "", "| count | value | at most |", "|---|---|---|"]
    lines += [f"| {n} | {v:g} | {'' if most is None else f'{most:g}'} |" for n, v, most in counts(results)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words that a case's name must have")
    parser.add_argument("--share", type=int, default=1, help="one case in so many")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the lorawatch to try")
    args = parser.parse_args()
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
    ):  # a shell in the background lends its children deaf ears
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    picked = chosen(cases(), args.only, args.share, args.seed)
    if args.list:
        print(*(f"{c.name:<70} {c.wanted}" for c in picked), sep="\n")
        return 0
    began = time.monotonic()
    results = play_all(picked, args.python, args.jobs, args.seed)
    took_s = time.monotonic() - began
    if args.markdown:
        args.markdown.write_text(markdown(results, took_s))
    bad = False
    print(f"\n{took_s / 60:.1f} minutes")
    for name, value, most in counts(results):
        missed = most is not None and value > most
        bad |= missed
        bound = "" if most is None else f"  (at most {most:g}{', MISSED' if missed else ''})"
        print(f"{name:<40} {value:>8g}{bound}" if isinstance(value, int) else f"{name:<40} {value:>8.2f}{bound}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
