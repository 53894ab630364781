"""What a step computes, as facts that two configurations must share before their figures are compared."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lorawatch.analysis.shape import LINEARS
from lorawatch.errors import LorawatchError
from lorawatch.models.shapes import model_shape, shape_name
from lorawatch.text.sanitize import clean

Work = Mapping[str, str]
"""Fact → value, in words and in the order in which people name them."""

POSITIONS = "positions computed, padding included"
NOT_TOLD = "not told"
"""The fact that lists what a published table leaves open."""
_LONGEST = 200
# What a published table must tell to stand beside anything else, with the recipe's section and key.
_MUST_TELL = {
    "model": ("model", "name"),
    "precision": ("model", "dtype"),
    "LoRA": ("lora", "rank"),
    "sequence length": ("data", "sequence_length"),
    "batch per GPU": ("train", "batch_size_per_gpu"),
}
# What tables rarely tell: taken to be a recipe's default, which the row then says.
_ASSUMED = {"LoRA targets": ("lora", "targets"), "engine": ("train", "engine")}


def facts(recipe: Mapping[str, Any]) -> Work:
    """The facts of a recipe, whose sections may be partial; what it leaves out is as the recipe's default has it.

    Weights, data values, learning rate, schedule, seed and steps are left out: a step takes the same time with any. So
    is the GPU count.
    """
    model, lora = _section(recipe, "model"), _section(recipe, "lora")
    data, train = _section(recipe, "data"), _section(recipe, "train")
    targets = _targets(lora.get("targets") or ["q_proj", "v_proj"], str(model.get("name", "?")))
    batch, accumulated = train.get("batch_size_per_gpu", 2), train.get("gradient_accumulation", 1)
    source, packed = data.get("source", "synthetic"), "packed, " if data.get("packing") else ""
    found = {
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
        found["LoRA"] += f", dropout {lora['dropout']:g}"
    for extra in ("use_dora", "use_rslora"):
        if lora.get(extra):
            found["LoRA"] += f", {extra.removeprefix('use_')}"
    if train.get("gradient_checkpointing"):
        found["gradient checkpointing"] = "on"
    return {name: one_line(value) for name, value in found.items()}


def published_facts(work: Mapping[str, Any] | None, source: str) -> Work:
    """The facts of a published table: those it tells, and which of the needed ones it does not.

    A table that leaves some open agrees with nothing but itself, since nobody can know.
    """
    work = work or {}
    missing = [name for name, where in _MUST_TELL.items() if not _tells(work, where)]
    found = {name: value for name, value in facts(work).items() if name not in missing}
    return found | {NOT_TOLD: f"{', '.join(missing)} (by {one_line(source)})"} if missing else found


def assumed(work: Mapping[str, Any] | None) -> list[str]:
    """What a published table does not tell and is taken to be a recipe's default: `LoRA targets`, `engine`."""
    return [name for name, where in _ASSUMED.items() if not _tells(work or {}, where)]


def tokens_per_step(recipe: Mapping[str, Any]) -> float:
    """Tokens that one GPU computes in an optimizer step, at full length."""
    data, train = _section(recipe, "data"), _section(recipe, "train")
    return float(
        data.get("sequence_length", 512) * train.get("batch_size_per_gpu", 2) * train.get("gradient_accumulation", 1)
    )


def differences(one: Work, other: Work) -> list[str]:
    """What keeps two configurations from being compared: `batch per GPU 8, not 2`; empty where it is the same work."""
    commands = one.get("command"), other.get("command")
    if commands != (None, None):
        if commands[0] == commands[1]:
            return []
        return [f"the command {name}, whose work is not known" for name in commands if name is not None]
    untold = one.get(NOT_TOLD) != other.get(NOT_TOLD)
    names = [n for n in [*one, *(n for n in other if n not in one)] if n != NOT_TOLD]
    found = []
    for name in names:
        if name in _MUST_TELL and (name not in one or name not in other):
            found.append(f"{name} not told")
        elif one.get(name) != other.get(name):
            found.append(f"{name} {one.get(name, 'off')}, not {other.get(name, 'off')}")
    return found or ["neither table tells all of its work"] if untold else found


def words(work: Work) -> str:
    """One line for people: what all of a table's rows compute."""
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
    shown += [f"not told: {work[NOT_TOLD]}"] if NOT_TOLD in work else []
    return " · ".join(part for part in shown if part)


def one_line(text: str) -> str:
    """Text from outside as it may stand in a table: harmless, in one line, not longer than a cell can be."""
    if len(text) <= _LONGEST and " " not in text and text.isascii() and text.isprintable():
        return text  # the most of them: ids of thousands of runs
    return _squeezed(text)


@functools.lru_cache(maxsize=1000)  # of GPU models thousands of runs say the same
def _squeezed(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}


def _tells(work: Mapping[str, Any], where: tuple[str, str]) -> bool:
    return _section(work, where[0]).get(where[1]) is not None


def _targets(targets: Any, model: str) -> str:
    """The layers that have an adapter, by name; all of a known model's are `all-linear`, however they were listed."""
    names = [targets] if isinstance(targets, str) else sorted(str(t) for t in targets)
    if set(names) == set(LINEARS) and _is_known(shape_name(model)):
        return "all-linear"
    return ", ".join(names)


@functools.lru_cache(maxsize=1000)
def _is_known(model: str) -> bool:
    """Whether a model has the linear layers of the Llama family and no others."""
    try:
        model_shape(model)
    except LorawatchError:
        return False
    return True


def _precision(model: Mapping[str, Any]) -> str:
    dtype, quantization = str(model.get("dtype", "bfloat16")), model.get("quantization", "none")
    return dtype if quantization in (None, "none") else f"{dtype} over {quantization}"
