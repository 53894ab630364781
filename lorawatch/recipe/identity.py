"""When two runs did the same work, and what a resumed run may change: both read from the recipe's keys themselves.

The same work means that tok/s may be compared: a step of the one computes as much as a step of the other, in the same
precision, on rows of the same lengths. So these are part of it: the model's shape, the number formats, the adapter's size and
layers, the rows (source, split, packing, sequence length), the batch, recomputation, and the engine. These are not:

* the values that are computed with, since a kernel takes as long for any: random or pretrained weights, `lora.alpha`,
  learning rate, schedule, clipping, seed. Whoever measures with random weights knows the speed of the real ones.
* how long a run goes on, how often it is saved and evaluated, on what, and how it is watched: that is outside the measured steps.
* which and how many devices, how they are coupled, and which way gradients take: that is what is compared at equal work.

`lora.use_rslora` is part of it although it only scales, so that figures of one method are not read as another's. Two keys
count only where they change a row: `data.packing` where rows differ in length, `data.split` of a hub data set.

A model's other names are one model, and layers listed one by one are `all-linear` where they are all: the names of shapes are
`lorawatch.models.shapes.canonical`'s, which callers apply first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

import msgspec

from lorawatch.recipe.loading import has_splits
from lorawatch.recipe.schema import Recipe


@dataclass(frozen=True)
class Key:
    """What a recipe's key means for two runs.

    Attributes:
        work: It must be equal in runs that are compared.
        resume: A resume may change it.
        default: What counts where a recipe lacks it; None for a required key.
    """

    work: bool
    resume: bool
    default: Any


class SilentKey(TypeError):
    """A key of the recipe's schema does not say what it means for two runs."""


@cache
def keys(kind: type[msgspec.Struct] = Recipe, section: str = "") -> Mapping[str, Key]:
    """Every key of a recipe by its dotted path, in the order of the schema.

    Raises:
        SilentKey: One has none of `Work`, `Fixed` and `Free` at its field.
    """
    hints = get_type_hints(kind, include_extras=True)
    all_keys: dict[str, Key] = {}
    for field in msgspec.structs.fields(kind):
        hint, path = hints[field.name], f"{section}{field.name}"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            all_keys.update(keys(hint, f"{path}."))
            continue
        extra = next((meta.extra for meta in get_args(hint)[1:] if isinstance(meta, msgspec.Meta) and meta.extra), None)
        if extra is None or not {"work", "resume"} <= set(extra):
            raise SilentKey(f"{path} is none of Work, Fixed and Free (lorawatch/recipe/schema.py)")
        all_keys[path] = Key(extra["work"], extra["resume"], _default(field))
    return all_keys


def changeable() -> tuple[str, ...]:
    """The keys that a resume may change, by path; those of `train` first, which says how long a run goes on."""
    paths = (path for path, key in keys().items() if key.resume)
    return tuple(sorted(paths, key=lambda path: not path.startswith("train.")))


def work(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a step of a recipe computes: the keys that are part of the work, by path; equal for recipes of the same work.

    Args:
        recipe: Plain data under canonical names. Its sections may be partial, or of no use: what is missing is as the
            default has it, so that a recipe from before a key is one that leaves it at its default.
    """
    values = {path: _plain(_at(recipe, path), key.default) for path, key in keys().items() if key.work}
    if values["data.source"] == "synthetic":  # random tokens are full rows already
        values["data.packing"] = False
    if not has_splits(str(values["data.source"])):
        values["data.split"] = keys()["data.split"].default
    return values


def digest(recipe: Mapping[str, Any]) -> str:
    """A short text that is equal for recipes of the same work.

    The history keeps it (`lorawatch.storage.workloads`): a change of what `work` gives for a recipe that there was before is a
    new number there.

    Args:
        recipe: As for `work`.
    """
    return hashlib.sha256(msgspec.json.encode(work(recipe), order="deterministic")).hexdigest()[:12]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None


def _at(recipe: Mapping[str, Any], path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any, default: Any) -> Any:
    """A value in the one form that it has in every recipe that means it: 0 and 0.0, and layers in any order, are one."""
    if value is None or value == []:
        value = default
    if isinstance(default, bool):
        return bool(value)
    if isinstance(default, float) and isinstance(value, int | float):
        return float(value)
    if isinstance(default, list) and value != "all-linear":
        return sorted({str(item) for item in (value if isinstance(value, list | tuple) else [value])})
    return value
