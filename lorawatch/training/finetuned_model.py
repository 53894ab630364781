"""A finished run's model for use: the base as the recipe names it, with the adapter that the run saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import psutil
import torch
from peft import PeftModel
from transformers.utils import logging as transformers_logging

from lorawatch.errors import LorawatchError, NoSuitableGpu
from lorawatch.recipe.schema import Recipe
from lorawatch.run.adapters import adapter_folder
from lorawatch.run.directory import RunDir
from lorawatch.run.requests import AdapterChoice
from lorawatch.training import model as models
from lorawatch.training import quantization

_GIB = 1 << 30
# Beside the weights: the CUDA context, and keys and values of some thousand tokens.
_BESIDE_BYTES = 1 << 30


@dataclass(frozen=True)
class FinetunedModel:
    """A model that can be asked.

    Attributes:
        plan: What it is.
        model: With its adapter (a PeftModel), or the base alone.
        tokenizer: The base's.
        device: Where it is.
        precision: How its base's weights are kept: `bfloat16`, `bfloat16 over nf4`.
        note: Why it is not where or as it was trained; empty where nothing needs to be said.
    """

    plan: models.ModelPlan
    model: Any
    tokenizer: Any
    device: torch.device
    precision: str = ""
    note: str = ""


@dataclass(frozen=True)
class _WeightFormat:
    """A way to keep the base's weights."""

    recipe: Recipe
    plan: models.ModelPlan

    @property
    def needed(self) -> int:
        """Bytes of base and adapter."""
        return self.plan.base_bytes + 4 * (self.plan.facts.lora_parameters or 0)

    @property
    def precision(self) -> str:
        model = self.recipe.model
        return model.dtype if model.quantization == "none" else f"{model.dtype} over {model.quantization}"


def load(
    run: RunDir, recipe: Recipe, *, adapter: bool, which: AdapterChoice = "last", cpu: bool = False, plain: bool = False
) -> FinetunedModel:
    """Load a run's model on the first visible GPU if that has room, else on the CPU.

    A base that was trained in NF4 is in NF4 again on a GPU: smaller, and what the adapter was trained on. On the CPU, where
    NF4 is slow, it is so only if memory is short. FP8 is for training alone.

    Args:
        adapter: With one of the run's adapters.
        which: The last or the best.
        cpu: On the CPU in any case.
        plain: Not in NF4 in any case.

    Raises:
        ModelNotFound: The base model is not here (any more).
        NoSuitableGpu: Its random weights can be drawn on a GPU only, and there is none with room.
        MissingDependency: The base is stored in NF4, and what reads that is missing.
        LorawatchError: The adapter cannot be used, or memory is short.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    forms = _weight_formats(recipe, plain)
    drawn_on = run.info().device if forms[0].plan.files is None else None
    form, device, note = _choose_format(forms, cpu or drawn_on == "cpu")
    if drawn_on == "cuda" and device.type != "cuda":
        raise NoSuitableGpu(
            f"run {run.run_id} drew its random weights on a GPU, and only a GPU draws the same{': ' if note else ''}{note}",
            hint="use it on a machine with a GPU that has room",
        )
    tokenizer = models.load_tokenizer(form.plan)
    model = models.load_base(form.plan, form.recipe, device)
    if plain and form.plan.stored_nf4:
        model = model.dequantize(form.plan.dtype)
    if adapter:
        model = attach_adapter(model, run, which)
    return FinetunedModel(form.plan, model.eval(), tokenizer, device, form.precision, note)


def _weight_formats(recipe: Recipe, plain: bool) -> list[_WeightFormat]:
    """The ways to keep a run's base: as it was trained, and as its files have it."""
    trained = _WeightFormat(recipe, models.plan_model(recipe))
    if recipe.model.quantization == "none" or trained.plan.stored_nf4:
        return [trained]
    other = msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, quantization="none"))
    bare = _WeightFormat(other, models.plan_model(other))
    return [bare] if plain or recipe.model.quantization == "fp8" else [trained, bare]


def _choose_format(forms: list[_WeightFormat], on_cpu: bool) -> tuple[_WeightFormat, torch.device, str]:
    """How to keep the base, where, and why not better.

    Args:
        forms: As it was trained first; that is also what a GPU had better do, and the CPU had better not.
        on_cpu: On the CPU in any case.

    Raises:
        LorawatchError: Nowhere is room.
    """
    cpu = torch.device("cpu")
    said: list[str] = []
    failed: LorawatchError | None = None
    for form, kind in [*((f, "cuda") for f in forms if not on_cpu), *((f, "cpu") for f in reversed(forms))]:
        device, why = (cpu, "") if kind == "cpu" else choose_device(form.needed)
        if device.type != kind:
            said += [why] if why else []
            continue
        try:
            quantization.check(form.recipe, device)
            if device.type == "cpu":
                check_memory(form.needed)
        except LorawatchError as error:
            failed = failed or error
            said.append(error.message)
            continue
        if form is not forms[0] and not said:
            said.append(f"trained in {forms[0].recipe.model.quantization}, which is slow here")
        return form, device, "; ".join(said)
    assert failed is not None
    raise failed


def choose_device(needed: int) -> tuple[torch.device, str]:
    """The first visible GPU if it has room for so many bytes, else the CPU and why."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), ""
    try:
        free, _ = torch.cuda.mem_get_info(0)
        name = torch.cuda.get_device_name(0)
    except RuntimeError as error:
        return torch.device("cpu"), f"the GPU cannot be used: {str(error).splitlines()[0]}"
    if needed + _BESIDE_BYTES <= free:
        return torch.device("cuda", 0), ""
    wanted = (needed + _BESIDE_BYTES) / _GIB
    return torch.device("cpu"), f"{name} has {free / _GIB:.1f} GiB free, and {wanted:.1f} are needed"


def check_memory(needed: int) -> None:
    """See that the host has room for so many bytes.

    Raises:
        LorawatchError: It has not; with the numbers.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise LorawatchError(
            f"the model needs {needed / _GIB:.1f} GiB of memory, and this host has {available / _GIB:.1f} GiB available",
            hint="end what else runs here, or use a machine with more memory",
        )


def attach_adapter(base: Any, run: RunDir, which: AdapterChoice = "last") -> PeftModel:
    """A base model with one of a run's adapters on it, not trainable.

    Raises:
        LorawatchError: The adapter is damaged, does not fit the base, or is not made of numbers.
    """
    folder = adapter_folder(run, which)
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
            hint=f"lorawatch show {run.run_id} has its losses; a smaller train.learning_rate keeps it together",
        )
    return model
