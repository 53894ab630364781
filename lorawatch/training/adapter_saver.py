"""Saves an adapter in PEFT's format, with the tokenizer, in a folder that is complete at every moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.run.adapters import BEST_FILE, BestAdapter
from lorawatch.system import folders


def write_adapter(folder: Path, model: Any) -> None:
    """Write an adapter's files into a folder.

    Args:
        folder: Need not exist.
        model: A PeftModel.

    Raises:
        OSError: The disk does not take them.
    """
    # Otherwise PEFT asks the hub whether the base's embedding was resized.
    model.save_pretrained(folder, save_embedding_layers=False)


def save_adapter(target: Path, model: Any, tokenizer: Any, best: BestAdapter | None = None) -> None:
    """Save an adapter. The folder appears complete or not at all.

    Args:
        target: The folder; an older adapter there is replaced.
        model: A PeftModel.
        tokenizer: Saved beside the adapter; None: no tokenizer is saved.
        best: The evaluation of this adapter, where it is the run's best.

    Raises:
        OSError: The disk does not take it; an older adapter stays.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write_adapter(temporary, model)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if best is not None:
            (temporary / BEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(best), indent=1))
        folders.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
