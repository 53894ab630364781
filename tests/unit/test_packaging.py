"""The hand-written package list and the static checkers' map hold what the tree holds."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = ("storage", "assets", "screens")


def packages_in_tree() -> set[str]:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "lorawatch").rglob("__init__.py")
        if path.is_file()
    }
    for name in OUTSIDE:
        found |= {
            "lorawatch." + ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / name).rglob("__init__.py")
        }
    return found


def test_every_package_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setuptools["packages"]) == packages_in_tree()


def test_every_package_has_its_place_in_the_checkers_map() -> None:
    for package in packages_in_tree() - {"lorawatch"}:
        assert (ROOT / ".typecheck" / Path(*package.split("."))).is_dir(), package


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = [d for group in project["optional-dependencies"].values() for d in group]
    for requirement in [*project["dependencies"], *extras]:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip().lower().replace("_", "-")
        assert name in pinned, f"{name} has no tested pin in constraints.txt"


def test_every_data_file_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for folder, package in (("assets", "lorawatch.assets"), ("storage", "lorawatch.storage")):
        patterns = setuptools["package-data"][package]
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT / folder)
            if path.is_file() and path.suffix not in (".py", ".pyc") and name.parts[0] != "screenshots":
                assert any(name.match(pattern) for pattern in patterns), name
