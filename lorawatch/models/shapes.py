"""A model's shape from its configuration or the built-in table `assets/models.yaml`, which only this module reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, cast

from lorawatch.analysis.shape import LINEARS, ModelShape
from lorawatch.errors import ModelNotFound
from lorawatch.system.user_files import expanded, read_bounded

_LARGEST_CONFIG = 16 << 20  # bytes of a config.json


_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class BuiltinShape:
    """An entry of the built-in table.

    Attributes:
        name: The entry's own name, whatever alias it was looked up by.
        config: What transformers' config takes; shared by all callers, so that whoever changes it copies it first.
    """

    name: str
    config: Mapping[str, Any]


@cache
def builtin_shapes() -> Mapping[str, BuiltinShape]:
    """The built-in table by name, aliases included."""
    import yaml  # a compare of commands alone needs none of it

    text = (resources.files("lorawatch.assets") / "models.yaml").read_text(encoding="utf-8")
    shapes: dict[str, BuiltinShape] = {}
    for name, entry in yaml.safe_load(text).items():
        aliases = entry.pop("aliases", ())
        shapes.update(dict.fromkeys((name, *aliases), BuiltinShape(name, entry)))
    return shapes


def shape_name(model: str) -> str:
    """The name under which a model's shape is known: other names of the same shape give the same.

    Case does not count. A name may lack its owner, as in published tables, where only one owner's model is called so.
    """
    folded = model.casefold()
    names = _folded_names()
    return names.get(folded, names.get("/" + folded, model))


def canonical(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe with its model and layers under the names by which their shape is known, for `lorawatch.recipe.identity`.

    All linear layers of a known model are `all-linear`, however they are listed.

    Args:
        recipe: Plain data; it is not changed, and sections that are none are left as they are.
    """
    model, lora = recipe.get("model"), recipe.get("lora")
    if not isinstance(model, Mapping) or model.get("name") is None:
        return recipe
    name = shape_name(str(model["name"]))
    named = {**recipe, "model": {**model, "name": name}}
    targets = lora.get("targets") if isinstance(lora, Mapping) else None
    if isinstance(targets, list | tuple) and set(map(str, targets)) == set(LINEARS) and _has_shape(name):
        named["lora"] = {**cast("Mapping[str, Any]", lora), "targets": "all-linear"}
    return named


def model_shape(name: str) -> ModelShape:
    """The shape of a model as a recipe names it: from the built-in table, a local folder, or the hub's cache.

    Uses no network, so that it can be called on every key press.

    Raises:
        ModelNotFound: None of them has it, or it is not of the Llama family; the hint says what to do.
    """
    builtin = builtin_shapes().get(name)
    config: Any = _config_file(name) if builtin is None else builtin.config
    try:
        if not isinstance(config, Mapping):
            raise ValueError("its config.json is not a mapping")
        return ModelShape.from_config(config)
    except ValueError as error:
        raise ModelNotFound(f"the shape of {name!r} is not known here: {error}") from None


def _config_file(name: str) -> Any:
    from lorawatch.models import hub  # imports urllib, which no name of the table needs

    where = expanded(name)
    folder = where if (where / "config.json").is_file() else hub.cached_snapshot(name)
    if folder is None:
        reason = (
            "a .gguf file is not read before the start"
            if name.endswith(".gguf")
            else "no config.json is on this machine"
        )
        names = ", ".join(sorted(builtin_shapes()))
        raise ModelNotFound(
            f"the shape of {name!r} is not known here: {reason}",
            hint=f"name a folder with its config.json, a model in the hub's cache, or one of {names}",
        )
    path = folder / "config.json"
    try:
        return json.loads(read_bounded(path, _LARGEST_CONFIG).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"the shape of {name!r} is not known here: {path}: {error}") from None


@lru_cache(maxsize=1000)
def _has_shape(name: str) -> bool:
    """Whether a model has the linear layers of the Llama family and no others."""
    try:
        model_shape(name)
    except ModelNotFound:
        return False
    return True


@cache
def _folded_names() -> Mapping[str, str]:
    """Names in small letters → the shape's name; `/name` stands for the name without its owner, where that is unique."""
    names: dict[str, str] = {}
    bare: dict[str, set[str]] = {}
    for alias, shape in builtin_shapes().items():
        names[alias.casefold()] = shape.name
        bare.setdefault("/" + alias.rpartition("/")[2].casefold(), set()).add(shape.name)
    return names | {alias: next(iter(owners)) for alias, owners in bare.items() if len(owners) == 1}
