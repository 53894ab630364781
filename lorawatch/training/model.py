"""Builds the model that a recipe names, from pretrained or random weights, with LoRA adapters in FP32."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from lorawatch.analysis.flops import lora_flops_per_token
from lorawatch.analysis.weights import linear_bytes
from lorawatch.errors import LorawatchError, MissingDependency, ModelNotFound, NoSuitableGpu, RecipeError
from lorawatch.models import hub
from lorawatch.models.shapes import builtin_shapes
from lorawatch.recipe.schema import Recipe
from lorawatch.training import fp8, nf4, random_weights
from lorawatch.training.facts import ModelFacts, context_length, is_linear, linear_layers, model_facts
from lorawatch.training.safe_loading import config_from_files, model_from_config, model_from_files, tokenizer_from_files
from lorawatch.training.tokenization import byte_tokenizer

_GIB = 1 << 30
_ADAPTER_BYTES = 4 + 4 + 8  # FP32 weight and gradient, AdamW's two moments


@dataclass(frozen=True)
class ModelPlan:
    """A model before its weights are loaded: its shape and size, and where the weights come from.

    Attributes:
        config: transformers' config.
        files: Where the weights are; None: random weights.
        folder: A folder that may hold the tokenizer; None: only the shape is known.
        dtype: Number format of the base weights.
        facts: Sizes with the adapters.
        base_bytes: Memory of the base weights alone, in the format that training keeps them in.
        weights_bytes: Memory of base, adapters, gradients and optimizer states, without activations.
        stored_nf4: The files hold NF4 weights.
    """

    config: Any
    files: hub.ModelFiles | None
    folder: Path | None
    dtype: torch.dtype
    facts: ModelFacts
    base_bytes: int
    weights_bytes: int
    stored_nf4: bool = False

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.config.get_text_config().vocab_size)


def plan_model(recipe: Recipe) -> ModelPlan:
    """Find a recipe's model and compute its sizes, without reading a weight.

    Raises:
        ModelNotFound: The model is not on this machine, or its config cannot be used.
        RecipeError: `lora.targets` names no linear layer of the model, the sequences are longer than its context, or
            its weights are stored in a quantized format that the recipe does not ask for.
        MissingDependency: It is a GGUF file, and the package that reads it is missing.
    """
    dtype = getattr(torch, recipe.model.dtype)
    files: hub.ModelFiles | None = None
    if recipe.model.weights == "random":
        config, folder = _shape(recipe.model.name)
    else:
        if recipe.model.name in builtin_shapes():
            _table_only(recipe.model.name)
        files = hub.find(recipe.model.name)
        config, folder = read_config(files), files.folder
    _check_length(recipe, config)
    stored_nf4 = files is not None and _check_stored(recipe, config)
    with torch.device("meta"), no_init_weights():
        skeleton = model_from_config(config, dtype=dtype)
    skeleton.tie_weights()
    products, magnitudes = _adapter_parameters(skeleton, recipe)
    adapters = products + magnitudes
    base = model_facts(skeleton)
    text = config.get_text_config()
    heads, size = text.num_attention_heads, getattr(text, "head_dim", None)
    width = heads * size if size else text.hidden_size
    matmul = sum(m.weight.numel() for m in skeleton.modules() if is_linear(m))
    flops = lora_flops_per_token(matmul, products, recipe.data.sequence_length, width, text.num_hidden_layers)
    # FP8 products run at another peak than the rest of the step, so a run in FP8 has no MFU.
    computed_in = str(fp8.FORMAT).removeprefix("torch.") if recipe.model.quantization == "fp8" else recipe.model.dtype
    facts = ModelFacts(base.parameters + adapters, adapters, flops, computed_in)
    kept = base.parameters * dtype.itemsize
    for _, inputs, outputs in linear_layers(skeleton):
        plain, quantized = (
            linear_bytes(inputs, outputs, dtype.itemsize, q) for q in ("none", recipe.model.quantization)
        )
        kept -= plain - quantized
    return ModelPlan(config, files, folder, dtype, facts, kept, kept + adapters * _ADAPTER_BYTES, stored_nf4)


def check_memory(plan: ModelPlan, device: torch.device, out_of_memory_hint: Callable[[], str] | None = None) -> None:
    """Check that a GPU has room for a model's weights, before any of them is loaded.

    Args:
        plan: The model.
        device: Where it would go; on the CPU nothing is checked.
        out_of_memory_hint: Returns what to change where there is no room.

    Raises:
        NoSuitableGpu: There is not; the message has the figures.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    if plan.weights_bytes > free:
        name = torch.cuda.get_device_name(device)
        raise NoSuitableGpu(
            f"the model needs {plan.weights_bytes / _GIB:.1f} GiB for weights and adapters alone, but {name} (cuda:"
            f"{device.index or 0}) has {free / _GIB:.1f} of {total / _GIB:.1f} GiB free",
            hint=out_of_memory_hint()
            if out_of_memory_hint
            else "use a GPU with more free memory (--gpus), stop other programs on it (nvidia-smi), or use a smaller model",
        )


def load_model(plan: ModelPlan, recipe: Recipe, device: torch.device) -> PeftModel:
    """The model on its device. Base weights are frozen; adapters are trainable and FP32.

    Raises:
        ModelNotFound: Its files cannot be read.
        RuntimeError: PEFT left a weight trainable or frozen that should not be.
    """
    base = load_base(plan, recipe, device)
    targets = recipe.lora.targets
    lora = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=recipe.lora.use_rslora,
        use_dora=recipe.lora.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora, autocast_adapter_dtype=True)
    for name, parameter in model.named_parameters():
        if ("lora_" in name) != parameter.requires_grad or (
            parameter.requires_grad and parameter.dtype != torch.float32
        ):
            raise RuntimeError(f"{name} is {parameter.dtype}, trainable {parameter.requires_grad}: not a LoRA set-up")
    if recipe.model.quantization == "fp8":
        fp8.convert_frozen_linears(model)
    return model


def load_base(plan: ModelPlan, recipe: Recipe, device: torch.device) -> Any:
    """The model on its device as it is before training.

    Where the recipe asks for NF4, the frozen linear layers are quantized while they are read or drawn, so that memory
    never holds much more than the quantized model. Random weights are drawn on the device, which takes well under a
    second for 8 billion on an H100. Another kind of device draws others from the same seed.

    Raises:
        ModelNotFound: Its files cannot be read.
    """
    torch.manual_seed(recipe.train.seed)
    in_nf4 = recipe.model.quantization == "nf4"
    if plan.files is None:
        replace_layer = partial(nf4.quantize_linear, device=device) if in_nf4 else None
        drawn = random_weights.draw_model(plan.config, plan.dtype, device, replace_layer)
        return nf4.mark_as_4bit(drawn, device) if in_nf4 else drawn
    try:
        base = _read_weights(plan, plan.files, device, in_nf4)
    except OSError as error:
        raise ModelNotFound(f"model {recipe.model.name!r} cannot be read: {_first_line(error)}") from error
    # So that a saved adapter names its base as the user did, not a path on this machine.
    base.config._name_or_path = base.name_or_path = recipe.model.name
    return base


def _read_weights(plan: ModelPlan, files: hub.ModelFiles, device: torch.device, in_nf4: bool) -> Any:
    """A pretrained model on its device.

    Raises:
        OSError: A file cannot be read.
    """
    if files.gguf is None:
        extra: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" or in_nf4 else {}
        if in_nf4 and not plan.stored_nf4:
            extra["quantization_config"] = nf4.quantization_config(plan.dtype)
        base = model_from_files(files.folder, config=plan.config, dtype=plan.dtype, **extra)
        return nf4.mark_as_4bit(base, device) if in_nf4 else base
    unpacked: dict[str, Any] = {}
    try:
        from transformers import GgufConfig

        unpacked["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass  # older versions always unpack
    base = model_from_files(files.folder, gguf_file=files.gguf, config=plan.config, dtype=plan.dtype, **unpacked)
    # It is now a plain model. Marked as quantized, the Trainer would refuse it, and it could not be saved.
    for mark in ("hf_quantizer", "quantization_method"):
        setattr(base, mark, None)
    base.is_quantized = False
    if hasattr(base.config, "quantization_config"):
        del base.config.quantization_config
    if in_nf4:
        return nf4.mark_as_4bit(nf4.quantize_layers(base, [name for name, _, _ in linear_layers(base)], device), device)
    return base.to(device)


def load_tokenizer(plan: ModelPlan) -> Any:
    """The model's tokenizer; for a model of which only the shape is known, one that maps bytes to ids.

    Raises:
        ModelNotFound: The model's files hold no tokenizer that can be read.
    """
    if plan.folder is None:
        return byte_tokenizer()
    extra = {"gguf_file": plan.files.gguf} if plan.files and plan.files.gguf else {}
    try:
        tokenizer = tokenizer_from_files(plan.folder, **extra)
    except LorawatchError:
        raise
    except Exception as error:  # transformers checks it with errors of many kinds
        if plan.files is None:
            return byte_tokenizer()
        raise ModelNotFound(f"{plan.folder} holds no tokenizer that can be read: {_first_line(error)}") from error
    if extra:
        # transformers reads a GGUF file's special tokens into the config, but not into the tokenizer.
        for name in ("bos", "eos", "pad"):
            number = getattr(plan.config, f"{name}_token_id", None)
            if isinstance(number, int):
                setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_length(recipe: Recipe, config: Any) -> None:
    """Check that a recipe's sequences fit the model's context.

    Raises:
        RecipeError: They do not.
    """
    limit, asked = context_length(config), recipe.data.sequence_length
    if limit is not None and asked > limit:
        raise RecipeError(
            f"data.sequence_length is {asked}, but {recipe.model.name} has a context of {limit} tokens",
            hint=f"set data.sequence_length to {limit} or less, or choose a model with a longer context",
        )


def _check_stored(recipe: Recipe, config: Any) -> bool:
    """Whether a model's files hold NF4 weights.

    Raises:
        RecipeError: They hold quantized weights, and the recipe asks for another format, or for one that cannot be
            trained.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return False
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    how = stored.get("bnb_4bit_quant_type") if stored.get("load_in_4bit") else stored.get("quant_method", "?")
    if how == "nf4" and recipe.model.quantization == "nf4":
        return True
    raise RecipeError(
        f"the weights of {recipe.model.name} are stored quantized ({how}), and model.quantization is "
        f"{recipe.model.quantization}",
        hint="set model.quantization to nf4" if how == "nf4" else "name the model that they were made from",
    )


def _adapter_parameters(skeleton: torch.nn.Module, recipe: Recipe) -> tuple[int, int]:
    """Weights of the adapters' matrices, rank × (inputs + outputs) a layer, and DoRA's magnitudes, one an output.

    Raises:
        RecipeError: `lora.targets` names a layer that the model does not have.
    """
    layers = list(linear_layers(skeleton))
    targets = recipe.lora.targets
    products = magnitudes = 0
    matched: set[str] = set()
    for name, inputs, outputs in layers:
        fits = [targets] if isinstance(targets, str) else [t for t in targets if name == t or name.endswith(f".{t}")]
        if fits:
            matched.update(fits)
            products += recipe.lora.rank * (inputs + outputs)
            magnitudes += outputs if recipe.lora.use_dora else 0
    names = sorted({name.rpartition(".")[2] for name, _, _ in layers})
    for target in [targets] if isinstance(targets, str) else targets:
        if target not in matched:
            close = difflib.get_close_matches(target, names, n=1)
            suggestion = f"did you mean {close[0]}? " if close else ""
            if target == "all-linear":
                suggestion = "for all of them write lora.targets: all-linear, without a list; "
            raise RecipeError(
                f"lora.targets: {recipe.model.name} has no linear layer {target!r}",
                hint=f"{suggestion}its linear layers: {', '.join(names)}",
            )
    return products, magnitudes


def _table_only(name: str) -> None:
    """Refuse a name of the table of shapes, which have no weights.

    Raises:
        ModelNotFound: It is one, and no folder has that name.
    """
    if "/" not in name and not Path(name).is_dir():
        raise ModelNotFound(f"{name} is a shape without weights", hint="set model.weights to random")


def _shape(name: str) -> tuple[Any, Path | None]:
    """The config of a model that is built from its shape, and a folder that may hold its tokenizer.

    Raises:
        ModelNotFound: The shape is not known.
    """
    shapes = builtin_shapes()
    if name in shapes:
        shape = copy.deepcopy(dict(shapes[name].config))
        return AutoConfig.for_model(shape.pop("model_type"), **shape), None
    folder = hub.find_config(name)
    if folder is None:
        raise ModelNotFound(
            f"the shape of {name!r} is not known here",
            hint=f"give a folder with its config.json, or one of {', '.join(sorted(shapes))}",
        )
    return read_config(hub.ModelFiles(folder)), folder


def read_config(files: hub.ModelFiles) -> Any:
    """transformers' config of a model on this machine.

    Raises:
        ModelNotFound: There is none that can be used.
        MissingDependency: It is a GGUF file, and the package that reads it is missing.
    """
    if files.gguf is None:
        try:
            return config_from_files(files.folder)
        except LorawatchError:
            raise
        except Exception as error:  # transformers checks it with errors of many kinds
            raise ModelNotFound(f"{files.folder}/config.json cannot be used: {_first_line(error)}") from error
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingDependency(
            f"{files.gguf} is a GGUF file, which the package gguf reads", hint="pip install gguf"
        ) from None
    try:
        return config_from_files(files.folder, gguf_file=files.gguf)
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFound(f"{files.folder / files.gguf} cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
