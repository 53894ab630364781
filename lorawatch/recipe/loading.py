"""Recipes read and checked: from a file, a built-in name, plain data, and `--set`."""

from __future__ import annotations

import difflib
import errno
import math
import types
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from lorawatch.errors import RecipeError
from lorawatch.recipe.devices import parse_gpus
from lorawatch.recipe.schema import Recipe
from lorawatch.recipe.yaml_text import LARGEST, parse_yaml
from lorawatch.system.user_files import expanded, read_bounded
from lorawatch.text.sanitize import encodable

_DEEPEST_KEY = 8


_LONGEST_SHOWN = 120


_LARGEST_NUMBER = 10**15


_LONGEST_TEXT = 4096  # a path may have so many


_LONGEST_LIST = 1000


SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""Of the data files that can be read."""


def has_splits(source: str) -> bool:
    """Whether rows come from a hub data set, which has splits, by the form of `data.source`."""
    return source not in ("synthetic", "demo") and Path(source).suffix not in SUFFIXES


def builtin_names() -> list[str]:
    """Names of the recipes that come with lorawatch."""
    folder = resources.files("lorawatch.assets") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a path or a built-in name, with `a.b=c` overrides applied.

    Raises:
        RecipeError: There is no such recipe, or it is not valid.
    """
    path = expanded(name)
    if name in builtin_names() and not path.is_file():
        text = (resources.files("lorawatch.assets") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        where = name
    else:
        where = str(path)
        text = _file_text(name, path)
    data = parse_yaml(text, where)
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: a recipe is a mapping, not {_describe(data)}", hint="it starts with `name:` and `model:`"
        )
    for override in overrides:
        _apply(data, override)
    return from_dict(data, where)


def read_text(path: Path) -> str:
    """A recipe file's text, whatever it says.

    Raises:
        OSError: It cannot be read, is no file, or is far too large for a recipe; `strerror` says what is wrong.
    """
    data = read_bounded(path, LARGEST)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OSError(errno.EILSEQ, f"it is not a text file: line {line} is no UTF-8") from None


def _file_text(name: str, path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        close = difflib.get_close_matches(name[:100], builtin_names(), n=1)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(
            f"recipe {_shown(name)}: no such file, and no built-in recipe has that name",
            hint=f"{suggestion}built in: {', '.join(builtin_names())}",
        ) from None
    except OSError as error:
        raise RecipeError(
            f"recipe {_shown(name)}: {error.strerror or error}", hint=f"built in: {', '.join(builtin_names())}"
        ) from None


def overridden(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with `a.b=c` overrides applied.

    Raises:
        RecipeError: It would not be valid.
    """
    data = recipe.to_dict()
    for override in overrides:
        _apply(data, override)
    return from_dict(data, recipe.name)


def from_dict(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain data.

    Raises:
        RecipeError: An unknown or missing key, a wrong type, a value out of its range; all with path and value.
    """
    _check(data, Recipe, "", where)
    recipe = msgspec.convert(data, Recipe)
    _check_values(recipe, where)
    return recipe


def _apply(data: dict[str, Any], override: str) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise RecipeError(
            f"--set {_shown(override)}: not of the form key=value", hint="for example --set train.steps=100"
        )
    *parents, last = key.strip().split(".")
    if len(parents) > _DEEPEST_KEY:
        raise RecipeError(f"--set {_shown(override)}: there is no such key", hint="for example --set train.steps=100")
    place = data
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {_shown(override)}: {parent[:100]} is a value, not a section")
        place = inner
    place[last] = parse_yaml(text, f"--set {key[:100]}")


def _check(value: Any, kind: Any, path: str, where: str) -> None:
    """Walk data beside its type, so that the first mistake is named with its path, value and allowed values."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {path} is {_describe(value)}, but it is a section with keys {_keys(kind)}")
        hints = get_type_hints(kind, include_extras=True)
        for key in value:
            if key not in hints:
                close = difflib.get_close_matches(str(key)[:100], hints, n=1)
                hint = f"did you mean {_join(path, close[0])}? " if close else _elsewhere(str(key))
                raise RecipeError(
                    f"{where}: unknown key {_join(path, str(key)[:100])} (value {_shown(value[key])})",
                    hint=f"{hint}allowed: {_keys(kind)}",
                )
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in value:
                raise RecipeError(f"{where}: {_join(path, field.name)} is missing")
            if field.name in value:
                _check(value[field.name], hints[field.name], _join(path, field.name), where)
        return
    if beyond := out_of_bounds(value):
        raise RecipeError(f"{where}: {path} is {_shown(value)}, {beyond}")
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(
            f"{where}: {path} is {_shown(value)} ({_describe(value)}), but must be {allowed(kind)}"
        ) from error


def _check_values(recipe: Recipe, where: str) -> None:
    if recipe.model.weights == "random" and recipe.model.name.endswith(".gguf"):
        raise RecipeError(
            f"{where}: model.weights is 'random', but a GGUF file has weights", hint="set model.weights to pretrained"
        )
    if recipe.model.quantization == "fp8":
        _check_fp8(recipe, where)
    _check_evaluation(recipe, where)
    try:
        parse_gpus(recipe.launch.gpus)
    except ValueError as error:
        raise RecipeError(f"{where}: launch.gpus is {_shown(recipe.launch.gpus)}: {error}") from None


def _check_fp8(recipe: Recipe, where: str) -> None:
    if recipe.model.dtype != "bfloat16":
        # PyTorch's FP8 product with a scale a row (torch._scaled_mm) gives bfloat16 and nothing else.
        raise RecipeError(
            f"{where}: model.quantization is 'fp8', whose products are bfloat16, but model.dtype is {recipe.model.dtype!r}",
            hint="set model.dtype to bfloat16",
        )
    if recipe.lora.use_dora:
        raise RecipeError(
            f"{where}: lora.use_dora is true, but model.quantization is 'fp8'; DoRA computes with the frozen weights' norms, "
            "which FP8 does not keep",
            hint="set model.quantization to none or nf4, or lora.use_dora to false",
        )


def _check_evaluation(recipe: Recipe, where: str) -> None:
    data, every = recipe.data, recipe.train.eval_every
    if every is not None and not data.evaluates:
        raise RecipeError(
            f"{where}: train.eval_every is {every}, but there are no rows to evaluate on",
            hint="set data.eval_share (0.05 holds one row in twenty of data.source out), data.eval_source (a file or a hub "
            "id), or data.eval_split (of a hub data set)",
        )
    if data.eval_share and (data.eval_source or data.eval_split):
        other = "eval_source" if data.eval_source else "eval_split"
        raise RecipeError(
            f"{where}: data.eval_share is {data.eval_share:g} and data.{other} {_shown(getattr(data, other))}: "
            "rows to evaluate on come from one of them",
            hint=f"leave one out: data.eval_share: 0, or data.{other}: null",
        )
    if data.eval_source == "synthetic":
        raise RecipeError(
            f"{where}: data.eval_source is 'synthetic', but nothing says how many random rows that would be",
            hint="with data.source: synthetic, data.eval_share: 0.05 draws a twentieth as many as are trained on",
        )
    source = data.eval_source or data.source
    if data.eval_split and not has_splits(source):
        raise RecipeError(
            f"{where}: data.eval_split is {_shown(data.eval_split)}, but {_shown(source)} is no hub data set and has no splits",
            hint="data.eval_share holds some of its rows out",
        )
    if data.evaluates and not data.eval_share and (source, data.eval_split or data.split) == (data.source, data.split):
        raise RecipeError(
            f"{where}: the rows to evaluate on would be those that are trained on ({_shown(source)})",
            hint="data.eval_share holds some of them out, data.eval_split names another split of a hub data set",
        )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _keys(kind: type[msgspec.Struct]) -> str:
    return ", ".join(f.name for f in msgspec.structs.fields(kind))


def _elsewhere(key: str) -> str:
    """Where a key that is in the wrong section belongs."""
    for section in msgspec.structs.fields(Recipe):
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct):
            names = [f.name for f in msgspec.structs.fields(section.type)]
            if key in names:
                return f"{key} belongs to {section.name}: {section.name}.{key}. "
    return ""


def out_of_bounds(value: Any) -> str | None:
    """Why no key can have a value, whatever its type, in a few words; None where one might."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        return f"larger than {_LARGEST_NUMBER:.0e}"
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"longer than {_LONGEST_TEXT:,} characters"
    if isinstance(value, str) and encodable(value) != value:
        return "no UTF-8 text"
    if isinstance(value, list):
        if len(value) > _LONGEST_LIST:
            return f"longer than {_LONGEST_LIST:,} entries"
        return next((f"with an entry that is {words}" for words in map(out_of_bounds, value) if words), None)
    return None


def _shown(value: Any) -> str:
    """A value as a message shows it, not longer than a line or two."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}… ({len(text):,} characters)"


def _describe(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a section"}
    return names.get(type(value), type(value).__name__)


def allowed(kind: Any) -> str:
    """A type in words, with its bounds."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *extras = get_args(kind)
        words = allowed(base)
        for meta in extras:
            if isinstance(meta, msgspec.Meta):
                bounds = [
                    f"{sign} {limit:g}"
                    for sign, limit in (("≥", meta.ge), (">", meta.gt), ("≤", meta.le), ("<", meta.lt))
                    if limit is not None
                ]
                if bounds:
                    words += " " + " and ".join(bounds)
                if meta.min_length:
                    words += " with at least one entry"
                if meta.pattern:
                    words += " of letters, digits, '.', '_' and '-' (64 at most)"
        return words
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(a) for a in get_args(kind))
    if origin is list:
        return f"a list ({allowed(get_args(kind)[0])} each)"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return names.get(kind, str(kind))
