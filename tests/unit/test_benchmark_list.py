"""The list of benchmarks says of each file what its figures are for and how it is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (FOLDER / "README.md").read_text().splitlines()
    if line.startswith("| `")
]
RUN = {row[0].strip("` "): row for row in ROWS if len(row) == 3}
USED = {row[0].strip("` "): row for row in ROWS if len(row) == 2}


def test_the_list_has_the_folders_files() -> None:
    assert RUN.keys() | USED.keys() == {path.name for path in FOLDER.glob("*.py")}
    assert not RUN.keys() & USED.keys()


def test_make_bench_runs_what_the_list_says() -> None:
    tree = ast.parse((FOLDER / "run_all.py").read_text())
    (scripts,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCRIPTS"
    )
    assert set(scripts) == {name for name, row in RUN.items() if row[2].strip("` ") == "make bench"}


def test_each_other_benchmark_names_its_command_and_where_its_figures_stand() -> None:
    for name, (_, figures, command) in RUN.items():
        command = command.strip("` ")
        if command == "make bench":
            continue
        assert command.startswith(f"python tests/benchmarks/{name}")
        named = re.findall(r"`([\w/]+\.\w+)`", figures)
        assert named, name
        for path in named:
            assert (ROOT / path).is_file() or path in RUN, f"{name}: {path}"


def test_a_part_is_imported_by_what_uses_it() -> None:
    for name, (_, users) in USED.items():
        for user in re.findall(r"`(\w+\.py)`", users):
            assert name.removesuffix(".py") in (FOLDER / user).read_text(), f"{user} uses no {name}"
