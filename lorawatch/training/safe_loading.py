"""The only module in which transformers opens a model's files. Python code beside those files is never run.

Without an explicit `trust_remote_code=False` transformers asks on the terminal whether to run such code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorawatch.errors import ModelNotFound


def config_from_files(folder: Path, **more: Any) -> Any:
    """transformers' config of the model in a folder.

    Raises:
        ModelNotFound: Only code of its author can read it.
        Exception: It is not a config; transformers raises errors of many kinds.
    """
    return _without_code(AutoConfig.from_pretrained, folder, str(folder), **more)


def tokenizer_from_files(folder: Path, **more: Any) -> Any:
    """The tokenizer in a folder. Raises as `config_from_files`."""
    return _without_code(AutoTokenizer.from_pretrained, folder, str(folder), **more)


def model_from_files(folder: Path, **more: Any) -> Any:
    """The model in a folder. Raises as `config_from_files`."""
    return _without_code(AutoModelForCausalLM.from_pretrained, folder, str(folder), **more)


def model_from_config(config: Any, **more: Any) -> Any:
    """The model of a config, with untrained weights. Raises as `config_from_files`."""
    where = getattr(config, "_name_or_path", "") or getattr(config, "model_type", "it")
    return _without_code(AutoModelForCausalLM.from_config, where, config, **more)


def _without_code(load: Callable[..., Any], where: object, *what: Any, **more: Any) -> Any:
    try:
        return load(*what, trust_remote_code=False, **more)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelNotFound(
            f"the model {where} needs Python code that comes with it, and lorawatch runs no such code",
            hint="choose a model whose architecture is part of transformers, or a converted version of this one",
        ) from error
