"""What checks a change on a developer's machine and on a server is what `.ci/run` and `make lint` run."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_pre_commit_has_the_ruff_of_the_constraints() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (version,) = re.findall(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert repo["rev"] == f"v{version}"
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_workflow_runs_the_ci_script_and_nothing_else() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.12"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_ci_script_runs_every_part_of_make_check() -> None:
    (parts,) = re.findall(r"^check: ([\w ]+)", (ROOT / "Makefile").read_text(), re.M)
    script = (ROOT / ".ci" / "run").read_text()
    called = {word for line in re.findall(r"^make (.*)$", script, re.M) for word in line.split()}
    assert set(parts.split()) <= called
