"""The recipe's keys as plain data for forms: path, kind, choices, what is allowed, help. All read from the structs."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from lorawatch.errors import RecipeError
from lorawatch.recipe.loading import allowed, out_of_bounds
from lorawatch.recipe.schema import Recipe
from lorawatch.recipe.yaml_text import parse_yaml, write_yaml

Kind = Literal["text", "number", "choice", "list", "value"]
ABSENT: Final = object()
"""Stands for a key that is not there, where None is a value."""


@dataclass(frozen=True)
class Field:
    """One key of a recipe.

    Attributes:
        path: `train.steps`.
        section: `train`; empty for a key of the recipe itself.
        kind: How it is typed: text as it is, a number, one of `choices`, entries separated by commas, or YAML.
        default: What counts where the key is absent, as `write` gives it; empty for a required key.
        allowed: Its type and bounds in words.
        help: The key's docstring, on one line.
    """

    path: str
    section: str
    name: str
    kind: Kind
    choices: tuple[str, ...]
    default: str
    required: bool
    allowed: str
    help: str
    type: Any = field(repr=False, compare=False)


@functools.cache
def recipe_fields(kind: type[msgspec.Struct] = Recipe, section: str = "") -> tuple[Field, ...]:
    """Every key of a recipe (or of another struct), in the order of its sections; the recipe's own keys come first."""
    hints = get_type_hints(kind, include_extras=True)
    helps = _docstrings(kind)
    own: list[Field] = []
    inner: list[Field] = []
    for info in msgspec.structs.fields(kind):
        hint = hints[info.name]
        path = f"{section}.{info.name}" if section else info.name
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            inner += recipe_fields(hint, path)
            continue
        if info.default is not msgspec.NODEFAULT:
            default = write(info.default)
        elif info.default_factory is not msgspec.NODEFAULT:
            default = write(info.default_factory())
        else:
            default = ""
        how, choices = _kind(hint)
        own.append(
            Field(path, section, info.name, how, choices, default, info.required, allowed(hint),
                  helps.get(info.name, ""), hint)
        )  # fmt: skip
    return (*own, *inner)


def read(key: Field, text: str) -> Any:
    """What a person typed as plain data. Text that is not of the key's kind stays text, for `problem` to name."""
    text = text.strip()
    types_ = _alternatives(key.type)
    if text == "null" and type(None) in types_:
        return None
    match key.kind:
        case "text":
            return text
        case "choice":
            return next((v for v in _literals(types_) if write(v) == text), text)
        case "list" if text in _literals(types_):
            return text
        case "list" if not text.startswith("["):
            return [word.strip() for word in text.split(",") if word.strip()]
        case "number":
            try:
                value = parse_yaml(text, key.path)
            except RecipeError:
                return text
            return value if isinstance(value, int | float) else text
    try:
        return parse_yaml(text, key.path)
    except RecipeError:
        return text


def write(value: Any) -> str:
    """A value as a person types it into one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list) and all(
        isinstance(v, str) and v and v == v.strip() and not set(v) & set(",[]") for v in value
    ):
        return ", ".join(value)
    if isinstance(value, list | dict):
        return write_yaml(value, default_flow_style=True, width=float("inf")).strip()
    return str(value)


def value_at(data: Any, path: str) -> Any:
    """The value at a dotted path of plain data, or `ABSENT`."""
    for key in path.split("."):
        if not isinstance(data, Mapping) or key not in data:
            return ABSENT
        data = data[key]
    return data


def problem(key: Field, value: Any) -> str | None:
    """What is wrong with a key's value, in a few words; None where nothing is."""
    if value is ABSENT:
        return "is missing" if key.required else None
    if beyond := out_of_bounds(value):
        return beyond
    try:
        msgspec.convert(value, key.type)
    except msgspec.ValidationError:
        return f"not {key.allowed}"
    if key.required and value == "":
        return "is missing"
    return None


def problems(data: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong, by path: all keys at once, each by itself. What only the whole shows, `recipe.from_dict` tells."""
    wrong = {key.path: problem(key, value_at(data, key.path)) for key in recipe_fields()}
    return {path: words for path, words in wrong.items() if words is not None}


def _kind(hint: Any) -> tuple[Kind, tuple[str, ...]]:
    types_ = _alternatives(hint)
    if any(get_origin(t) is list for t in types_) and {get_origin(t) for t in types_} <= {list, Literal}:
        return "list", ()  # a word that stands for a list is typed in its place
    choices = tuple(write(v) for v in _literals(types_))
    if choices:
        return "choice", (*choices, "null") if type(None) in types_ else choices
    kinds = {get_origin(t) or t for t in types_} - {type(None)}
    if str in kinds:
        return "text", ()
    if kinds and kinds <= {int, float}:
        return "number", ()
    if kinds == {list}:
        return "list", ()
    return "value", ()


def _alternatives(hint: Any) -> list[Any]:
    """The types that a hint allows, without bounds."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [t for a in get_args(hint) for t in _alternatives(a)]
    return [hint]


def _literals(types_: list[Any]) -> list[Any]:
    values: list[Any] = []
    for one in types_:
        if get_origin(one) is Literal:
            values += get_args(one)
        elif one is bool:
            values += [True, False]
    return values


def _docstrings(kind: type) -> dict[str, str]:
    """The text that follows each key in the source; Python itself does not keep it."""
    texts = {}
    for before, after in itertools.pairwise(_classes(kind.__module__).get(kind.__name__, [])):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            texts[before.target.id] = " ".join(after.value.value.replace("`", "").split())
    return texts


@functools.cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """The bodies of a module's classes; empty where its source is not there."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
