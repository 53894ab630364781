"""The tests' own layout: helpers are modules of their own, and no test module is imported by another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from schedule import LONG_FILES

TESTS = Path(__file__).parents[1]


def imported(path: Path) -> Iterator[str]:
    """The last part of each module that a file imports, and each name that it imports from one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        yield from (name.rpartition(".")[2] for name in names)


def test_no_test_module_is_imported() -> None:
    files = sorted(TESTS.rglob("*.py"))
    modules = {path.stem for path in files if path.stem.startswith("test_")}
    assert len(modules) > 100
    assert {
        str(path.relative_to(TESTS)): sorted(both) for path in files if (both := modules & set(imported(path)))
    } == {}


def test_no_two_test_modules_share_a_name() -> None:
    """The folders are no packages: pytest imports a test module by its bare name."""
    names = [path.stem for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_the_long_files_exist() -> None:
    assert set(LONG_FILES) <= {path.name for path in TESTS.rglob("test_*.py")}
