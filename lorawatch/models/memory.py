"""The GPU memory that a recipe needs: joins the recipe and the model's shape for the estimate. Loads no torch."""

from __future__ import annotations

from lorawatch.analysis.memory import GIB, TIGHT_SHARE, Workload, estimate, verdict, what_would_fit
from lorawatch.analysis.shape import LINEARS, LoraShape
from lorawatch.errors import LorawatchError, RecipeError
from lorawatch.models.shapes import _DTYPE_BYTES, model_shape
from lorawatch.recipe.schema import Recipe


def workload(recipe: Recipe, world_size: int = 1) -> Workload:
    """What a rank of a recipe computes in a step, for `analysis.memory.estimate`.

    Rows of a data set are assumed to fill `data.sequence_length` and, in a batch of several, to differ in length. Packed rows are
    full, but the reference engine's attention takes a mask that separates their documents, as it does for padding.

    Args:
        recipe: The run's.
        world_size: Ranks that train one model together.

    Raises:
        ModelNotFound: The model's shape is not known on this machine.
        RecipeError: `lora.targets` names no linear layer of it.
        LorawatchError: The recipe uses something whose memory is not modelled.
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
    """A sentence that says what to change where a run has too little memory on a GPU.

    Where the run failed although it fits by the estimate, changes that need a tenth less are proposed.

    Args:
        recipe: The run's.
        world_size: Ranks that train one model together.
        memory_bytes: What the run may use of the GPU, as the driver counts.
    """
    try:
        work = workload(recipe, world_size)
    except LorawatchError:
        return "lower train.batch_size_per_gpu or data.sequence_length, or set train.gradient_checkpointing to true"
    needed = estimate(work)
    has = f"about {needed.device_bytes / GIB:.1f} GiB, and {memory_bytes / GIB:.1f} GiB are available"
    changes = what_would_fit(work, min(memory_bytes, int(TIGHT_SHARE * needed.device_bytes)))
    if changes:
        short = verdict(needed, memory_bytes).verdict != "fits"
        return f"the run needs {has}; what {'would fit' if short else 'needs less'}: {'; or '.join(changes)}"
    return f"the run needs {has}; its weights alone are {needed.weights / GIB:.1f} GiB: a larger GPU or a smaller model"
