"""README.md's blocks: figures of recorded runs are the program's, and what has none is right in its form."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
from helpers import sql
from history import make_run, step, write
from readme_blocks import BLOCKS, README, ROOT, blocks, cells, made

import lorawatch
from lorawatch.cli.main import cli, normalize
from lorawatch.recipe import loading, schema
from lorawatch.storage.ingest import finish_run

TEXT = README.read_text()
MARKED = blocks(TEXT)
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
TABLES = [table.group() for table in re.finditer(r"(?:^\|.*\n?)+", TEXT, re.M)]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_block_of_figures_is_what_the_program_prints(name: str) -> None:
    assert MARKED[name] == made(name), "python tests/readme_blocks.py --write"


def test_every_block_of_a_recorded_run_is_marked() -> None:
    assert set(MARKED) == set(BLOCKS)
    plain = [text for language, text in FENCES if not language]
    assert all(any(text in marked for marked in MARKED.values()) for text in plain)
    for table in TABLES:
        if "measured" in table:
            assert table.strip() in MARKED.values()


def test_a_table_without_recorded_data_names_the_benchmark_that_makes_it() -> None:
    others = [
        table for table in TABLES if table.strip() not in MARKED.values() and "---:" in table
    ]  # columns of figures
    assert others
    for table in others:
        paragraph = TEXT[: TEXT.index(table)].rstrip().rpartition("\n\n")[2]
        (script,) = re.findall(r"`(tests/benchmarks/\w+\.py)`", paragraph)
        assert (ROOT / script).is_file()
        assert len({len(cells(line)) for line in table.strip().splitlines()}) == 1


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:tests|assets)/[\w./]+)`", TEXT) + re.findall(r"\]\(([\w./]+)\)", TEXT)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


# --- commands


def command_lines() -> list[str]:
    """Each `lorawatch …` of the shell blocks and of the text."""
    shell = [line for language, text in FENCES if language == "sh" for line in text.splitlines()]
    prose = re.findall(r"`(lorawatch(?: [^`]*)?)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))
    return [line for line in (*shell, *(" ".join(line.split()) for line in prose)) if line.startswith("lorawatch")]


@pytest.mark.parametrize("line", command_lines())
def test_a_documented_command_and_its_options_exist(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("…", "|")]
    args, own, _ = normalize(words)
    if "--" in words:
        assert own is not None
    if not args:
        return  # the screens
    context = click.Context(cli)
    name, command, rest = cli.resolve_command(context, args)
    assert command is not None
    options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= options, name


def test_documented_overrides_are_keys_of_the_recipe() -> None:
    overrides = set(re.findall(r"--set ([\w.]+=\w+)", TEXT))
    assert len(overrides) >= 3
    loading.load("exxact-8b", sorted(overrides))
    sections = "|".join(field for field in schema.Recipe.__struct_fields__ if field != "name")
    keys = set(re.findall(rf"`((?:{sections})\.\w+)", TEXT))
    assert len(keys) > 10
    for key in keys:
        section, _, field = key.partition(".")
        assert field in type(getattr(loading.load("tiny"), section)).__struct_fields__, key


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^make (\w+)", "\n".join(text for _, text in FENCES), re.M))
    assert named == {"demo", "test"}
    assert named <= targets


# --- recipe, script, history


def test_the_recipe_is_valid(tmp_path: Path) -> None:
    (text,) = (text for language, text in FENCES if language == "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert loading.load(str(tmp_path / "mine.yaml")).name == "mine"
    named = TEXT.partition("Built in: ")[2].partition("\n")[0]
    assert {loading.load(name).name for name in re.findall(r"`([\w-]+)`", named)} == set(
        re.findall(r"`([\w-]+)`", named)
    )


def test_the_script_imports_what_there_is() -> None:
    (text,) = (text for language, text in FENCES if language == "python")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in imports for alias in node.names} <= set(lorawatch.__all__)
    assert importlib.util.find_spec("transformers"), "whose Trainer it is given to"


def test_the_named_tables_and_views_are_in_the_history(lorawatch_home: Path) -> None:
    run = make_run()
    write(run.rank_journal(0), step(1))
    finish_run(run)
    paragraph = TEXT.partition("## The history")[2].partition("Ten questions")[0]
    named = {name for name in re.findall(r"`(\w+)`", paragraph) if name.islower()}
    there = sql(lorawatch_home, "SELECT table_name FROM duckdb_tables() UNION SELECT view_name FROM duckdb_views()")
    assert len(named) > 12
    assert named <= {name for (name,) in there}
