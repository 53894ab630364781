"""The blocks of README.md that hold figures of recorded runs, made by the program from `tests/data`.

    python tests/readme_blocks.py            says which blocks differ
    python tests/readme_blocks.py --write    puts what the program prints now in their place

A block stands behind `<!-- made from tests/data: NAME -->` and ends at the next empty line. Which rows and columns of a
printed table it has is chosen here; every cell is the program's.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DATA = ROOT / "tests" / "data"
_BLOCK = re.compile(r"<!-- made from tests/data: (?P<name>[\w-]+) -->\n\n(?P<text>.*?)(?=\n\n|\Z)", re.S)

SWEEP_COLUMNS = (
    "configuration", "from", "tok/s", "speed-up", "efficiency", "coupling", "W", "tok/J", "VRAM", "50M tokens", "kWh",
)  # fmt: skip
_NOT_A_FIGURE = ("tags", "versions", "run directory")
"""Lines of `show` that `--record` does not end with, or that name a folder of this machine."""


def printed(home: Path, *args: str) -> str:
    """What a command prints about the history under `home`.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lorawatch", *args], cwd=ROOT, env={**os.environ, "LORAWATCH_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"lorawatch {' '.join(args)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def cells(line: str) -> list[str]:
    """The cells of a Markdown table's line."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def sweep(home: Path, *, data: str, published: tuple[str, ...] = ()) -> str:
    """The measured configurations of a recorded sweep as `compare` prints them, and these published ones.

    Raises:
        ValueError: `compare` prints no such column.
    """
    with gzip.open(DATA / data / "history.duckdb.gz") as packed:
        (home / "history.duckdb").write_bytes(packed.read())
    lines = printed(home, "compare", "--tokens", "50M", "--format", "markdown").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| configuration"))
    table = [cells(line) for line in lines[start : lines.index("", start)]]
    chosen = [table[0].index(column) for column in SWEEP_COLUMNS]
    rows = [row for row in table[2:] if row[1].startswith("measured") or row[0] in published]
    body = [[row[column] for column in chosen] for row in (table[0], *rows)]
    alignment = "|" + "|".join(table[1][column] for column in chosen) + "|"
    first, *others = ("| " + " | ".join(row) + " |" for row in body)
    return "\n".join([first, alignment, *others])


def end_of_run(home: Path, *, data: str, run_id: str) -> str:
    """The figures with which `--record` ends, of a recorded run."""
    shutil.copytree(DATA / data / run_id, home / "runs" / run_id)
    figures = printed(home, "show", run_id).partition("\n\n")[0].splitlines()
    return "\n".join(["```", *(line for line in figures if not line.startswith(_NOT_A_FIGURE)), "```"])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "h100-sweep": partial(sweep, data="h100_x2_sweep", published=("4 × RTX PRO 4500",)),
    "h200-sweep": partial(sweep, data="h200_x2_sweep_fast"),
    "h100-run": partial(end_of_run, data="h100_run", run_id="0gq2zx6h"),
}


def made(name: str) -> str:
    """A block as the program prints it now."""
    with tempfile.TemporaryDirectory() as home:
        return BLOCKS[name](Path(home))


def blocks(readme: str) -> dict[str, str]:
    """The marked blocks of a README, by name."""
    return {match["name"]: match["text"] for match in _BLOCK.finditer(readme)}


def written(readme: str) -> str:
    """A README with each marked block as the program prints it now."""
    return _BLOCK.sub(lambda match: match[0].removesuffix(match["text"]) + made(match["name"]), readme)


def main() -> None:
    readme = README.read_text()
    new = written(readme)
    before, after = blocks(readme), blocks(new)
    differ = [name for name, text in after.items() if before[name] != text]
    if "--write" in sys.argv[1:]:
        README.write_text(new)
        print(f"written: {', '.join(differ) or 'nothing'}")
    elif differ:
        sys.exit(f"{', '.join(differ)}: README.md has other figures; python tests/readme_blocks.py --write")


if __name__ == "__main__":
    main()
