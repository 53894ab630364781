"""What a step computes, as facts. Two configurations are compared only where these agree."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

from lorawatch.analysis.shape import LINEARS
from lorawatch.errors import LorawatchError
from lorawatch.text.sanitize import clean

Work = Mapping[str, str]
"""Fact → value, as text, in the order in which they are shown."""

POSITIONS = "positions computed, padding included"
NOT_STATED = "not told"
"""The fact that lists what a published table does not state, under the name that JSON has for it."""
_LONGEST = 200
# What a published table must state to be compared with anything else, with the recipe's section and key.
_MUST_STATE = {
    "model": ("model", "name"),
    "precision": ("model", "dtype"),
    "LoRA": ("lora", "rank"),
    "sequence length": ("data", "sequence_length"),
    "batch per GPU": ("train", "batch_size_per_gpu"),
}
# What tables rarely state: assumed to be a recipe's default, which the row then notes.
_ASSUMED = {"LoRA targets": ("lora", "targets"), "engine": ("train", "engine")}


def facts(recipe: Mapping[str, Any]) -> Work:
    """The facts of a recipe, whose sections may be partial; a missing key has the recipe's default.

    Weights, data values, learning rate, schedule, seed and steps are left out: a step takes the same time with any. So
    is the GPU count.
    """
    model, lora = _section(recipe, "model"), _section(recipe, "lora")
    data, train = _section(recipe, "data"), _section(recipe, "train")
    targets = _targets(lora.get("targets") or ["q_proj", "v_proj"], str(model.get("name", "?")))
    batch, accumulated = train.get("batch_size_per_gpu", 2), train.get("gradient_accumulation", 1)
    source, packed = data.get("source", "synthetic"), "packed, " if data.get("packing") else ""
    named = {
        "model": shape_name(str(model.get("name", "?"))),
        "precision": _precision(model),
        "LoRA": f"rank {lora.get('rank', 16)} on {targets}",
        "sequence length": f"{data.get('sequence_length', 512)} tokens",
        "batch per GPU": f"{batch}" + (f" × {accumulated} accumulated" if accumulated != 1 else ""),
        "engine": str(train.get("engine", "reference")),
        "rows": "full length" if source == "synthetic" else f"{packed}of {source}",
        "tokens": str(recipe.get("tokens", POSITIONS)),
    }
    if lora.get("dropout"):
        named["LoRA"] += f", dropout {lora['dropout']:g}"
    for extra in ("use_dora", "use_rslora"):
        if lora.get(extra):
            named["LoRA"] += f", {extra.removeprefix('use_')}"
    if train.get("gradient_checkpointing"):
        named["gradient checkpointing"] = "on"
    return {name: one_line(value) for name, value in named.items()}


def published_facts(work: Mapping[str, Any] | None, source: str) -> Work:
    """The facts of a published table: those it states, and which of the needed ones it does not.

    A table that leaves some out is the same work as its own rows only, since the rest is not known.
    """
    work = work or {}
    missing = [name for name, where in _MUST_STATE.items() if not _states(work, where)]
    stated = {name: value for name, value in facts(work).items() if name not in missing}
    return stated | {NOT_STATED: f"{', '.join(missing)} (by {one_line(source)})"} if missing else stated


def assumed(work: Mapping[str, Any] | None) -> list[str]:
    """What a published table does not state and is assumed to be a recipe's default: `LoRA targets`, `engine`."""
    return [name for name, where in _ASSUMED.items() if not _states(work or {}, where)]


def tokens_per_step(recipe: Mapping[str, Any]) -> float:
    """Tokens that one GPU computes in an optimizer step, at full length."""
    data, train = _section(recipe, "data"), _section(recipe, "train")
    return float(
        data.get("sequence_length", 512) * train.get("batch_size_per_gpu", 2) * train.get("gradient_accumulation", 1)
    )


def differences(one: Work, other: Work) -> list[str]:
    """Why two configurations cannot be compared: `batch per GPU 8, not 2`; empty where it is the same work."""
    commands = one.get("command"), other.get("command")
    if commands != (None, None):
        if commands[0] == commands[1]:
            return []
        return [f"the command {name}, whose work is not known" for name in commands if name is not None]
    unequally_stated = one.get(NOT_STATED) != other.get(NOT_STATED)
    names = [n for n in [*one, *(n for n in other if n not in one)] if n != NOT_STATED]
    differing = []
    for name in names:
        if name in _MUST_STATE and (name not in one or name not in other):
            differing.append(f"{name} not stated")
        elif one.get(name) != other.get(name):
            differing.append(f"{name} {one.get(name, 'off')}, not {other.get(name, 'off')}")
    return differing or ["neither table states all of its work"] if unequally_stated else differing


def words(work: Work) -> str:
    """The work in one line."""
    if "command" in work:
        return f"the command {work['command']}"
    shown = [" ".join(work[name] for name in ("model", "precision") if name in work)]
    shown += [f"LoRA {work['LoRA']}"] if "LoRA" in work else []
    size = [f"batch {work['batch per GPU']}"] if "batch per GPU" in work else []
    size += [work["sequence length"]] if "sequence length" in work else []
    shown.append(" × ".join(size))
    shown += [f"engine {work['engine']}"] if "engine" in work else []
    shown += [f"rows {work['rows']}"] if work.get("rows", "full length") != "full length" else []
    shown += ["gradient checkpointing"] if "gradient checkpointing" in work else []
    shown += [f"not stated: {work[NOT_STATED]}"] if NOT_STATED in work else []
    return " · ".join(part for part in shown if part)


def shape_name(model: str) -> str:
    """The name under which a model's shape is known; other names of the same shape give the same one.

    A name may lack its owner, as in published tables, where only one owner has a model of that name.
    """
    name = model.casefold()
    return _shapes().get(name, _shapes().get("/" + name, model))


def one_line(text: str) -> str:
    """Text from outside made safe for a table: no control characters, one line, at most `_LONGEST` letters."""
    if len(text) <= _LONGEST and " " not in text and text.isascii() and text.isprintable():
        return text  # the usual case: ids of thousands of runs
    return _squeezed(text)


@functools.lru_cache(maxsize=1000)  # thousands of runs have the same GPU model
def _squeezed(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, Mapping) else {}


def _states(work: Mapping[str, Any], where: tuple[str, str]) -> bool:
    return _section(work, where[0]).get(where[1]) is not None


def _targets(targets: Any, model: str) -> str:
    """The layers that have an adapter, by name; all linear layers of a known model are `all-linear`, however listed."""
    names = [targets] if isinstance(targets, str) else sorted(str(t) for t in targets)
    if set(names) == set(LINEARS) and _is_known(shape_name(model)):
        return "all-linear"
    return ", ".join(names)


@functools.lru_cache(maxsize=1000)
def _is_known(model: str) -> bool:
    """Whether a model has the linear layers of the Llama family and no others."""
    from lorawatch.models import shapes  # 30 ms, which few comparisons need

    try:
        shapes.model_shape(model)
    except LorawatchError:
        return False
    return True


def _precision(model: Mapping[str, Any]) -> str:
    dtype, quantization = str(model.get("dtype", "bfloat16")), model.get("quantization", "none")
    return dtype if quantization in (None, "none") else f"{dtype} over {quantization}"


@functools.cache
def _shapes() -> Mapping[str, str]:
    """Names in small letters → the shape's name; `/name` stands for the name without its owner, where that is unique."""
    import yaml

    table = yaml.safe_load((resources.files("lorawatch.assets") / "models.yaml").read_text(encoding="utf-8"))
    by_alias: dict[str, str] = {}
    bare: dict[str, set[str]] = {}
    for name, entry in table.items():
        for alias in (name, *entry.get("aliases", ())):
            by_alias[alias.casefold()] = name
            bare.setdefault("/" + alias.rpartition("/")[2].casefold(), set()).add(name)
    return by_alias | {alias: next(iter(names)) for alias, names in bare.items() if len(names) == 1}
