"""The import contracts see every module of the tree, and every part of it has a place in them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]


def modules_of_the_tree() -> set[str]:
    found = set()
    for folder, package in (("lorawatch", "lorawatch"), ("screens", "lorawatch.screens"), ("storage", "lorawatch.storage"),
                            ("assets", "lorawatch.assets")):  # fmt: skip
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.add(".".join((package, *(p for p in parts if p != "__init__"))))
    return found


def test_the_graph_of_the_contracts_has_every_module() -> None:
    code = "import grimp; print(*sorted(grimp.build_graph('lorawatch', cache_dir=None).modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / ".typecheck", capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == modules_of_the_tree()


def test_each_forbidden_import_is_forbidden_to_all_but_its_one_place() -> None:
    children = {m for m in modules_of_the_tree() if m.count(".") == 1} - {"lorawatch.__main__"}
    for contract in CONTRACTS:
        if contract["type"] == "forbidden":
            allowed = children - set(contract["source_modules"])
            assert len(allowed) == 1, (contract["name"], allowed)
            assert not set(contract["source_modules"]) - children, contract["name"]


def test_nothing_is_excepted() -> None:
    assert not [c["name"] for c in CONTRACTS if c.get("ignore_imports")]
