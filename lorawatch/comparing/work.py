"""What a step computes, as facts. Two configurations are compared only where these agree."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lorawatch.models.shapes import canonical
from lorawatch.recipe import identity
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
# Keys of the work that have words of their own; any other is named as the recipe names it, where it is not at its default.
_IN_WORDS = frozenset(
    ("model.name", "model.dtype", "model.quantization", "lora.rank", "lora.dropout", "lora.targets", "data.source",
     "data.split", "data.sequence_length", "data.packing", "train.batch_size_per_gpu", "train.gradient_accumulation",
     "train.engine")
)  # fmt: skip
# What tables rarely state: assumed to be a recipe's default, which the row then says.
_ASSUMED = {"LoRA targets": ("lora", "targets"), "engine": ("train", "engine")}


def facts(recipe: Mapping[str, Any]) -> Work:
    """The facts of a recipe, whose sections may be partial; a missing key has the recipe's default.

    They are the keys that `recipe.identity` takes for the work, in words: two recipes have the same facts where they are the
    same work.
    """
    work = identity.work(canonical(recipe))
    targets, batch = work["lora.targets"], f"{work['train.batch_size_per_gpu']}"
    if (accumulated := work["train.gradient_accumulation"]) != 1:
        batch += f" × {accumulated} accumulated"
    named = {
        "model": str(work["model.name"] or "?"),
        "precision": _precision(work["model.dtype"], work["model.quantization"]),
        "LoRA": f"rank {work['lora.rank']} on {targets if isinstance(targets, str) else ', '.join(targets)}",
        "sequence length": f"{work['data.sequence_length']} tokens",
        "batch per GPU": batch,
        "engine": str(work["train.engine"]),
        "rows": _rows(work),
        "tokens": str(recipe.get("tokens", POSITIONS)),
    }
    if work["lora.dropout"]:
        named["LoRA"] += f", dropout {work['lora.dropout']:g}"
    for path, value in work.items():
        if path not in _IN_WORDS and value != identity.keys()[path].default:
            section, _, name = path.rpartition(".")
            if section == "lora":
                named["LoRA"] += f", {name.removeprefix('use_')}" + ("" if value is True else f" {value}")
            else:
                named[name.replace("_", " ")] = "on" if value is True else str(value)
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
    work = identity.work(recipe)
    rows = work["train.batch_size_per_gpu"] * work["train.gradient_accumulation"]
    return float(work["data.sequence_length"] * rows)


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


def _rows(work: Mapping[str, Any]) -> str:
    if work["data.source"] == "synthetic":
        return "full length"
    split = "" if work["data.split"] == identity.keys()["data.split"].default else f", split {work['data.split']}"
    return f"{'packed, ' if work['data.packing'] else ''}of {work['data.source']}{split}"


def _precision(dtype: object, quantization: object) -> str:
    return str(dtype) if quantization == "none" else f"{dtype} over {quantization}"
