"""What a step computes, as facts that two configurations must share before their figures are compared."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

Work = Mapping[str, str]
"""Fact → value, in words and in the order in which people name them."""

POSITIONS = "positions computed, padding included"


def facts(recipe: Mapping[str, Any]) -> Work:
    """The facts of a recipe, whose sections may be partial; what it leaves out is as the recipe's default has it.

    Weights, data values, learning rate, schedule, seed and steps are left out: a step takes the same time with any. So
    is the GPU count.
    """
    model, lora = _section(recipe, "model"), _section(recipe, "lora")
    data, train = _section(recipe, "data"), _section(recipe, "train")
    targets = lora.get("targets") or ["q_proj", "v_proj"]
    batch, accumulated = train.get("batch_size_per_gpu", 2), train.get("gradient_accumulation", 1)
    source = data.get("source", "synthetic")
    found = {
        "model": shape_name(str(model.get("name", "?"))),
        "precision": _precision(model),
        "LoRA": f"rank {lora.get('rank', 16)} on {', '.join([targets] if isinstance(targets, str) else sorted(targets))}",
        "sequence length": f"{data.get('sequence_length', 512)} tokens",
        "batch per GPU": f"{batch}" + (f" × {accumulated} accumulated" if accumulated != 1 else ""),
        "engine": str(train.get("engine", "reference")),
        "rows": "full length" if source == "synthetic" or data.get("packing") else f"of {source}",
        "tokens": str(recipe.get("tokens", POSITIONS)),
    }
    if lora.get("dropout"):
        found["LoRA"] += f", dropout {lora['dropout']:g}"
    for extra in ("use_dora", "use_rslora"):
        if lora.get(extra):
            found["LoRA"] += f", {extra.removeprefix('use_')}"
    if train.get("gradient_checkpointing"):
        found["gradient checkpointing"] = "on"
    return found


def tokens_per_step(recipe: Mapping[str, Any]) -> float:
    """Tokens that one GPU computes in an optimizer step, at full length."""
    data, train = _section(recipe, "data"), _section(recipe, "train")
    return float(
        data.get("sequence_length", 512) * train.get("batch_size_per_gpu", 2) * train.get("gradient_accumulation", 1)
    )


def differences(one: Work, other: Work) -> list[str]:
    """What keeps two configurations from being compared: `batch per GPU 8, not 2`; empty where it is the same work."""
    names = [*one, *(n for n in other if n not in one)]
    return [f"{n} {one.get(n, 'off')}, not {other.get(n, 'off')}" for n in names if one.get(n) != other.get(n)]


def words(work: Work) -> str:
    """One line for people: what all of a table's rows compute."""
    shown = [f"{work['model']} {work['precision']}", f"LoRA {work['LoRA']}"] if "model" in work else []
    if "sequence length" in work:
        shown += [f"batch {work['batch per GPU']} × {work['sequence length']}", f"engine {work['engine']}"]
    if "gradient checkpointing" in work:
        shown.append("gradient checkpointing")
    if "command" in work:
        shown.append(work["command"])
    return " · ".join(shown)


def shape_name(model: str) -> str:
    """The name under which a model's shape is known: other names of the same shape give the same."""
    return _aliases().get(model, model)


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}


def _precision(model: Mapping[str, Any]) -> str:
    dtype, quantization = str(model.get("dtype", "bfloat16")), model.get("quantization", "none")
    return dtype if quantization in (None, "none") else f"{dtype} over {quantization}"


@functools.cache
def _aliases() -> Mapping[str, str]:
    import yaml

    table = yaml.safe_load((resources.files("lorawatch.assets") / "models.yaml").read_text(encoding="utf-8"))
    return {alias: name for name, entry in table.items() for alias in entry.get("aliases", ())}
