"""`python -m lorawatch.training.merge RUN_DIR REQUEST`: writes a run's model as plain weights in transformers' format.

REQUEST is a `MergeRequest` as JSON. At the end it prints a `MergeReport` as JSON. The folder appears complete or
not at all.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from lorawatch.analysis.memory import GIB
from lorawatch.errors import LorawatchError, UsageError
from lorawatch.run.adapters import adapter_folder, adapter_step, adapter_words, recipe_of
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import AdapterChoice, MergeReport, MergeRequest
from lorawatch.system import terminal
from lorawatch.text.sanitize import clean, json_text

PROMPT = "An adapter is merged when its product is added to the frozen weights."
# How far rounding alone may move the logits (root mean square, relative): about thirty times a format's machine epsilon,
# because every layer rounds again; float32 has a floor for sums taken in another order.
_ALLOWED = {"float32": 1e-4, "float16": 2**-5, "bfloat16": 2**-3}
# Endings of the files in a model's folder: --force replaces such a folder, and nothing else.
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".bin", ".md", ".gguf", ".gitattributes")
# The author's own files are copied unchanged, because other programs read them.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def merge(run: RunDir, request: MergeRequest) -> MergeReport:
    """Merge, write, read back, compare, and then put the folder in its place.

    Args:
        run: The run whose adapter is merged.
        request: Which adapter, into which folder and number format.

    Raises:
        UsageError: The folder cannot be written or replaced.
        LorawatchError: Disk or memory is too small, the model or the adapter cannot be used, or the written weights do
            not compute what base and adapter compute.
    """
    recipe = recipe_of(run)
    folder = Path(request.folder)
    check_folder(
        folder, force=request.force, sources=[adapter_folder(run, choice) for choice in get_args(AdapterChoice)]
    )
    _print_status(f"loading {clean(recipe.model.name)} with {adapter_words(run, request.adapter)}")
    step = adapter_step(run, request.adapter)
    import torch

    from lorawatch.training import finetuned_model
    from lorawatch.training import model as models

    plan = models.plan_model(recipe)
    if plan.files:
        check_folder(folder, force=request.force, sources=[plan.files.folder])
    dtype = request.dtype or recipe.model.dtype
    size = getattr(torch, dtype).itemsize
    parameters = plan.facts.parameters - (plan.facts.lora_parameters or 0)
    check_disk(folder, parameters * size)
    # During the merge each layer's weights take the wider of both formats.
    finetuned_model.check_memory(parameters * max(plan.dtype.itemsize, size))
    loaded = finetuned_model.load(run, recipe, adapter=True, choice=request.adapter, cpu=True, plain=True)
    ids = loaded.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected, base_only = _logits_with_and_without_adapter(loaded.model, ids)
    _print_status(f"merging into {dtype}")
    merged = _merged(loaded.model, getattr(torch, dtype), run)
    with _replacing(folder) as temporary:
        _save(merged, loaded.tokenizer, plan, dtype, temporary)
        del merged, loaded
        gc.collect()
        _print_status("reading it back")
        logits = _logits(temporary, ids)
        difference = _relative_difference(logits, expected)
        allowed = max(_ALLOWED[dtype], _ALLOWED[recipe.model.dtype])
        _check_difference(difference, allowed)
        files = sorted(p.name for p in temporary.iterdir())
        written = sum(p.stat().st_size for p in temporary.iterdir())
    return MergeReport(
        run_id=run.run_id, adapter=request.adapter, step=step, folder=str(folder), model=recipe.model.name, dtype=dtype,
        parameters=parameters, size_bytes=written, files=files,
        largest_difference=float((logits - expected).abs().max()), relative_difference=difference,
        allowed_difference=allowed, adapter_difference=_relative_difference(base_only, expected),
        unpacked_from=plan.files.gguf if plan.files else None,
    )  # fmt: skip


def _logits_with_and_without_adapter(model: Any, ids: Any) -> tuple[Any, Any]:
    """The logits of base and adapter, and of the base alone.

    Args:
        model: A PeftModel.
        ids: Shape (1, tokens), INT64.

    Returns:
        Both of shape (1, tokens, vocabulary), FP32.
    """
    import torch

    with torch.inference_mode():
        both = model(input_ids=ids).logits.float()
        with model.disable_adapter():
            return both, model(input_ids=ids).logits.float()


def _check_difference(difference: float, allowed: float) -> None:
    """Check that the written weights compute what base and adapter compute.

    Args:
        difference: Between their logits, as `_relative_difference`.
        allowed: What rounding alone can cause.

    Raises:
        LorawatchError: The difference is larger, or is not a number.
    """
    if not difference <= allowed:
        raise LorawatchError(
            f"the merged weights do not compute what base and adapter compute: their logits differ by {difference:.2g} "
            f"(root mean square, relative), and rounding explains {allowed:.2g}; nothing was written",
            hint="--dtype float32 rounds least; the adapter itself is untouched",
        )


def check_folder(folder: Path, *, force: bool, sources: list[Path]) -> None:
    """Check that a folder can be written or replaced.

    Args:
        folder: Where the merged weights go.
        force: Replace the folder if it holds a model.
        sources: Folders that the merge reads.

    Raises:
        UsageError: It cannot; the message says why.
    """
    if any(folder == source.resolve() for source in sources):
        raise UsageError(f"{folder} is what the merged weights are made from", hint="give another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="give a folder")
    inside = sorted(folder.iterdir())
    if not inside:
        return
    if not force:
        raise UsageError(
            f"{folder} is not empty ({len(inside)} entries)", hint="give a new folder, or --force replaces it"
        )
    others = [p.name for p in inside if p.is_dir() or not p.name.endswith(_MODEL_FILES)]
    if others or not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds other things than a model{': ' if others else ''}{clean(', '.join(others[:3]))}",
            hint="--force replaces the folder of a model only; give a new folder",
        )


def check_disk(folder: Path, needed: int) -> None:
    """Check that a folder's disk has room.

    Args:
        folder: Where the files go; it need not exist.
        needed: Bytes of the weights.

    Raises:
        LorawatchError: It has not; the message has both figures.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    needed += 64 << 20  # tokenizer and configs
    if needed > free:
        raise LorawatchError(
            f"the merged weights take {needed / GIB:.1f} GiB, and the disk of {existing} has {free / GIB:.1f} GiB free",
            hint="free some, give a folder on another disk, or --dtype bfloat16",
        )


def _merged(model: Any, dtype: Any, run: RunDir) -> Any:
    """The base model with the adapter added to its weights, each rounded once.

    Args:
        model: A PeftModel on the CPU.
        dtype: Of the merged weights.
        run: For messages.

    Raises:
        LorawatchError: PEFT cannot merge this adapter, or the number format cannot hold a value.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.no_grad():
        for layer in [m for m in model.modules() if isinstance(m, BaseTunerLayer)]:
            base = layer.get_base_layer()
            base.float()  # in 16 bits most of a small adapter would be lost to rounding
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise LorawatchError(f"the adapter of run {run.run_id} cannot be merged: {error}") from error
            base.to(dtype)
        merged = model.unload()
        for name, parameter in merged.named_parameters():
            # Parameters only: the rotary embedding's buffers stay float32.
            parameter.data = parameter.data.to(dtype)
            if not torch.isfinite(parameter).all():
                raise LorawatchError(
                    f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold",
                    hint="--dtype bfloat16 holds as large ones as float32",
                )
    merged.config.dtype = dtype
    return merged


def _save(model: Any, tokenizer: Any, plan: Any, dtype: str, folder: Path) -> None:
    """Write weights, tokenizer and config.

    Raises:
        LorawatchError: The folder cannot be written.
    """
    generation = model.generation_config
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True  # the author set sampling parameters, but not do_sample
    try:
        model.save_pretrained(folder, max_shard_size="5GB")
        source = plan.files.folder if plan.files and not plan.files.gguf else None
        names = [n for n in _TOKENIZER_FILES if source and (source / n).is_file()]
        if source and names:
            for name in names:
                shutil.copyfile(source / name, folder / name)
        else:
            tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if source:
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
            config.pop("quantization_config", None)
        path = folder / "config.json"
        path.write_text(json.dumps(readable_config(config, dtype), indent=2) + "\n", encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(path.stat().st_mode)  # safetensors writes weights that only their owner can read
    except OSError as error:
        raise LorawatchError(f"{folder.parent} cannot be written: {error.strerror or error}") from error


def readable_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json that has number format and rotary embedding under their older names too.

    Programs with a transformers before version 5 look for those names, and silently use a default where they are missing.
    """
    config = {**config, "dtype": dtype, "torch_dtype": dtype}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    return config


def _logits(folder: Path, ids: Any) -> Any:
    """The logits of the model in a folder, for `PROMPT`.

    Args:
        folder: A written model.
        ids: Tokens of the prompt by the base's tokenizer, shape (1, tokens), INT64.

    Returns:
        Shape (1, tokens, vocabulary), FP32.

    Raises:
        LorawatchError: The written tokenizer gives other tokens.
    """
    import torch

    from lorawatch.training.safe_loading import model_from_files, tokenizer_from_files

    written = tokenizer_from_files(folder)(PROMPT, return_tensors="pt")["input_ids"]
    if not torch.equal(written, ids):
        raise LorawatchError("the written tokenizer does not give the same tokens as the base's; nothing was written")
    model = model_from_files(folder, dtype="auto").eval()
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


def _relative_difference(logits: Any, expected: Any) -> float:
    """Root mean square of the difference, over that of what was expected.

    Args:
        logits: Any shape, floating point.
        expected: The same shape.
    """
    return float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`. At the end it takes that folder's place; after an error it is removed.

    Raises:
        LorawatchError: The folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except OSError as error:
        raise LorawatchError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)


def _print_status(text: str) -> None:
    sys.stderr.write(f"lorawatch: {text}\n")
    sys.stderr.flush()


def _terminated(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # as an exception, so that the temporary folder is removed


def main() -> int:
    """Merge, and print the report.

    Returns:
        The process's exit status.
    """
    terminal.guard()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        report = merge(RunDir(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=MergeRequest))
    except LorawatchError as error:
        _print_status(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal and the parent may both have sent one
        return 130
    sys.stdout.write(json_text(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.finish(main()))
