"""Loads a finished run's model for use: the base that its recipe names, with the adapter that the run saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import torch
from peft import PeftModel
from transformers.utils import logging as transformers_logging

from lorawatch.analysis.memory import GIB
from lorawatch.errors import LorawatchError, NoSuitableGpu
from lorawatch.recipe.schema import Recipe
from lorawatch.run.adapters import adapter_folder
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import AdapterChoice
from lorawatch.training import model as models
from lorawatch.training import quantization

_BESIDE_WEIGHTS_BYTES = GIB
"""The CUDA context, and keys and values of some thousand tokens."""


@dataclass(frozen=True)
class FinetunedModel:
    """A model that is ready to answer.

    Attributes:
        plan: Its shape, and where its weights come from.
        model: A PeftModel, or the base model where no adapter was asked for.
        tokenizer: The base model's.
        device: Where the model is.
        precision: How the base weights are kept: `bfloat16`, `bfloat16 over nf4`.
        note: Why the model is on another device or in another format than in training; empty where it is not.
    """

    plan: models.ModelPlan
    model: Any
    tokenizer: Any
    device: torch.device
    precision: str = ""
    note: str = ""


@dataclass(frozen=True)
class _WeightFormat:
    """A format for the base weights."""

    recipe: Recipe
    plan: models.ModelPlan

    @property
    def needed(self) -> int:
        """Bytes of base and adapter."""
        return self.plan.base_bytes + 4 * (self.plan.facts.lora_parameters or 0)

    @property
    def precision(self) -> str:
        """The format for people: `bfloat16`, `bfloat16 over nf4`."""
        model = self.recipe.model
        return model.dtype if model.quantization == "none" else f"{model.dtype} over {model.quantization}"


def load(
    run: RunDir,
    recipe: Recipe,
    *,
    adapter: bool,
    choice: AdapterChoice = "last",
    cpu: bool = False,
    plain: bool = False,
) -> FinetunedModel:
    """Load a run's model on the first visible GPU if it has room, and otherwise on the CPU.

    A base that was trained in NF4 is loaded in NF4 on a GPU: it is smaller, and the adapter was trained on it. On the
    CPU, where NF4 is slow, it is loaded in NF4 only where memory is short. FP8 is used in training only.

    Args:
        run: The run.
        recipe: Its recipe.
        adapter: Load one of the run's adapters too.
        choice: Which one.
        cpu: Load on the CPU even where a GPU has room.
        plain: Never load in NF4.

    Raises:
        ModelNotFound: The base model is not on this machine.
        NoSuitableGpu: Its random weights can be drawn on a GPU only, and no GPU has room.
        MissingDependency: The base is stored in NF4, and the package that reads it is missing.
        LorawatchError: The adapter cannot be used, or memory is short.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    formats = _weight_formats(recipe, plain)
    drawn_on = run.info().device if formats[0].plan.files is None else None
    chosen, device, note = _choose_format(formats, cpu or drawn_on == "cpu")
    if drawn_on == "cuda" and device.type != "cuda":
        raise NoSuitableGpu(
            f"run {run.run_id} drew its random weights on a GPU, and only a GPU draws the same{': ' if note else ''}{note}",
            hint="use it on a machine with a GPU that has room",
        )
    tokenizer = models.load_tokenizer(chosen.plan)
    model = models.load_base(chosen.plan, chosen.recipe, device)
    if plain and chosen.plan.stored_nf4:
        model = model.dequantize(chosen.plan.dtype)
    if adapter:
        model = attach_adapter(model, run, choice)
    return FinetunedModel(chosen.plan, model.eval(), tokenizer, device, chosen.precision, note)


def _weight_formats(recipe: Recipe, plain: bool) -> list[_WeightFormat]:
    """The formats that a run's base can be loaded in: first as it was trained, then as its files have it."""
    trained = _WeightFormat(recipe, models.plan_model(recipe))
    if recipe.model.quantization == "none" or trained.plan.stored_nf4:
        return [trained]
    unquantized = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, quantization="none"))
    as_stored = _WeightFormat(unquantized, models.plan_model(unquantized))
    return [as_stored] if plain or recipe.model.quantization == "fp8" else [trained, as_stored]


def _choose_format(formats: list[_WeightFormat], on_cpu: bool) -> tuple[_WeightFormat, torch.device, str]:
    """The first format that fits: on a GPU in the order of the list, then on the CPU in the opposite order.

    Args:
        formats: The format of the training first; a GPU is best at that one, and the CPU at the last.
        on_cpu: Use no GPU.

    Returns:
        The format, the device, and why nothing before it was chosen.

    Raises:
        LorawatchError: Nothing fits; the error of the first that was tried.
    """
    reasons: list[str] = []
    errors: list[LorawatchError] = []
    for candidate in [] if on_cpu else formats:
        device, reason = choose_device(candidate.needed)
        if device.type == "cpu":
            reasons += [reason] if reason else []
        elif (error := _load_error(candidate, device)) is None:
            return candidate, device, "; ".join(reasons)
        else:
            errors.append(error)
            reasons.append(error.message)
    for candidate in reversed(formats):
        device = torch.device("cpu")
        if (error := _load_error(candidate, device)) is not None:
            errors.append(error)
            reasons.append(error.message)
            continue
        if candidate is not formats[0] and not reasons:
            reasons.append(f"trained in {formats[0].recipe.model.quantization}, which is slow here")
        return candidate, device, "; ".join(reasons)
    raise errors[0]


def _load_error(candidate: _WeightFormat, device: torch.device) -> LorawatchError | None:
    """Why a format cannot be loaded on a device; None where it can."""
    try:
        quantization.check(candidate.recipe, device)
        if device.type == "cpu":
            check_memory(candidate.needed)
    except LorawatchError as error:
        return error
    return None


def choose_device(needed: int) -> tuple[torch.device, str]:
    """The first visible GPU if it has room, and otherwise the CPU.

    Args:
        needed: Bytes of base and adapter.

    Returns:
        The device, and why it is not a GPU; empty where it is one or where there is none.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu"), ""
    try:
        free, _ = torch.cuda.mem_get_info(0)
        name = torch.cuda.get_device_name(0)
    except RuntimeError as error:
        return torch.device("cpu"), f"the GPU cannot be used: {str(error).splitlines()[0]}"
    if needed + _BESIDE_WEIGHTS_BYTES <= free:
        return torch.device("cuda", 0), ""
    wanted = (needed + _BESIDE_WEIGHTS_BYTES) / GIB
    return torch.device("cpu"), f"{name} has {free / GIB:.1f} GiB free, and {wanted:.1f} are needed"


def check_memory(needed: int) -> None:
    """Check that the host has room for a model.

    Args:
        needed: Bytes of its weights.

    Raises:
        LorawatchError: It has not; the message has both figures.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise LorawatchError(
            f"the model needs {needed / GIB:.1f} GiB of memory, and this host has {available / GIB:.1f} GiB available",
            hint="stop other programs on this host, or use a machine with more memory",
        )


def attach_adapter(base: Any, run: RunDir, choice: AdapterChoice = "last") -> PeftModel:
    """A base model with one of a run's adapters, not trainable.

    Raises:
        LorawatchError: The adapter is damaged, does not fit the base, or has weights that are not finite.
    """
    folder = adapter_folder(run, choice)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=False)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise LorawatchError(
            f"the adapter of run {run.run_id} does not load: {first}",
            hint=f"is the base model still the one it was trained on? the adapter is {folder}",
        ) from error
    weights = [p for name, p in model.named_parameters() if "lora_" in name]
    if not all(bool(torch.isfinite(p).all()) for p in weights):
        raise LorawatchError(
            f"the adapter of run {run.run_id} has weights that are not numbers: its training diverged",
            hint=f"lorawatch show {run.run_id} shows its losses; train again with a smaller train.learning_rate",
        )
    return model
