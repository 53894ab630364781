"""A model's shape from its configuration or the built-in table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from lorawatch.analysis.shape import ModelShape
from lorawatch.errors import ModelNotFound
from lorawatch.models import hub
from lorawatch.system.user_files import expanded, read_bounded

_LARGEST_CONFIG = 16 << 20  # bytes of a config.json


_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def model_shape(name: str) -> ModelShape:
    """The shape of a model as a recipe names it: from the built-in table, a local folder, or the hub's cache.

    Uses no network, so that it can be called on every key press.

    Raises:
        ModelNotFound: None of them has it, or it is not of the Llama family; the hint says what to do.
    """
    config: Any = _table().get(name)
    if config is None:
        config = _config_file(name)
    try:
        if not isinstance(config, Mapping):
            raise ValueError("its config.json is not a mapping")
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
