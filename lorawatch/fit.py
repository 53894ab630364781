"""What a recipe will need of a GPU's memory: the recipe and the model's shape, handed to the estimate. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from lorawatch.analysis.memory import GIB, TIGHT_SHARE, Workload, estimate, verdict, what_would_fit
from lorawatch.analysis.shape import LINEARS, LoraShape, ModelShape
from lorawatch.errors import LorawatchError, ModelNotFound, RecipeError
from lorawatch.reading import expanded, read_bounded
from lorawatch.recipe import Recipe
from lorawatch.training import hub

_LARGEST_CONFIG = 16 << 20  # bytes of a config.json
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def workload(recipe: Recipe, world_size: int = 1) -> Workload:
    """What a rank of a recipe computes in a step, for `analysis.memory.estimate`.

    Rows of a data set are taken to fill `data.sequence_length` and, several to a batch, to differ in length. Packed rows are
    full, but the reference engine's attention takes a mask that parts their documents, as it does for padding.

    Args:
        recipe: The run's.
        world_size: Ranks that train one model together.

    Raises:
        ModelNotFound: Nothing here says what shape the model has.
        RecipeError: `lora.targets` names no linear layer of it.
        LorawatchError: The recipe has something whose memory nothing here reckons.
    """
    shape = model_shape(recipe.model.name)
    if recipe.lora.use_dora and recipe.model.quantization == "nf4":
        # PEFT's layers for 4-bit weights then give float32 outputs, and most of what follows them becomes float32 too.
        raise LorawatchError(
            "the memory of DoRA over NF4 weights is not modelled",
            hint="it is more than the same recipe's with lora.use_dora: false, up to twice its activations",
        )
    targets = recipe.lora.targets
    # PEFT takes the end of a layer's full name.
    names = LINEARS if isinstance(targets, str) else tuple(t.rpartition(".")[2] for t in targets)
    try:
        lora = LoraShape(recipe.lora.rank, names, recipe.lora.dropout, recipe.lora.use_dora)
    except ValueError as error:
        raise RecipeError(f"lora.targets: {error}") from None
    train = recipe.train
    return Workload(
        shape=shape,
        lora=lora,
        batch=train.batch_size_per_gpu,
        sequence_length=recipe.data.sequence_length,
        dtype_bytes=_DTYPE_BYTES[recipe.model.dtype],
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_accumulation=train.gradient_accumulation,
        world_size=world_size,
        padded=recipe.data.source != "synthetic"
        and (train.engine == "reference" if recipe.data.packing else train.batch_size_per_gpu > 1),
        quantization=recipe.model.quantization,
    )


def shortage(recipe: Recipe, world_size: int, memory_bytes: int) -> str:
    """What to do where a run finds too little memory on a GPU, for people.

    Where the estimate says that it fits, and it did not, what needs a tenth less is proposed.

    Args:
        recipe: The run's.
        world_size: Ranks that train one model together.
        memory_bytes: What the run may use of the GPU, as NVML counts.
    """
    try:
        work = workload(recipe, world_size)
    except LorawatchError:
        return "lower train.batch_size_per_gpu or data.sequence_length, or set train.gradient_checkpointing to true"
    needed = estimate(work)
    has = f"about {needed.device_bytes / GIB:.1f} GiB, and {memory_bytes / GIB:.1f} GiB are there for it"
    found = what_would_fit(work, min(memory_bytes, int(TIGHT_SHARE * needed.device_bytes)))
    if found:
        short = verdict(needed, memory_bytes).verdict != "fits"
        return f"the run needs {has}; what {'would fit' if short else 'needs less'}: {'; or '.join(found)}"
    return f"the run needs {has}; its weights alone are {needed.weights / GIB:.1f} GiB: a larger GPU or a smaller model"


def model_shape(name: str) -> ModelShape:
    """The shape of a model as a recipe names it: from the built-in table, a local folder, or the hub's cache.

    Asks no network, so that it may be called while somebody types.

    Raises:
        ModelNotFound: None of them has it, or it is no model of the Llama family; says what to do.
    """
    config: Any = _table().get(name)
    if config is None:
        config = _config_file(name)
    try:
        if not isinstance(config, Mapping):
            raise ValueError("its config.json is no mapping")
        return ModelShape.from_config(config)
    except ValueError as error:
        raise ModelNotFound(f"the shape of {name!r} is not known here: {error}") from None


def _config_file(name: str) -> Any:
    where = expanded(name)
    folder = where if (where / "config.json").is_file() else hub.cached_snapshot(name)
    if folder is None:
        reason = (
            "a .gguf file is not read before the start"
            if name.endswith(".gguf")
            else "no config.json is on this machine"
        )
        raise ModelNotFound(
            f"the shape of {name!r} is not known here: {reason}",
            hint=f"name a folder with its config.json, a model in the hub's cache, or one of {', '.join(sorted(_table()))}",
        )
    path = folder / "config.json"
    try:
        return json.loads(read_bounded(path, _LARGEST_CONFIG).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"the shape of {name!r} is not known here: {path}: {error}") from None


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = (resources.files("lorawatch.assets") / "models.yaml").read_text(encoding="utf-8")
    return {known: shape for name, shape in yaml.safe_load(text).items() for known in (name, *shape.get("aliases", ()))}
