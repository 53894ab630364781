"""GPU memory of a LoRA run, before it starts: the bytes at its peak, whether a GPU has them, and what would fit instead.

The peak is the maximum over the moments of a step at which it can occur, not a sum of maxima: while the gradient of the
logits is computed, every activation is in memory but no adapter has a gradient yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from lorawatch.analysis.activations import (
    Batch,
    checkpointed_activations,
    final_norm,
    layer_activations,
    layer_transient,
    model_activations,
    norm_transient,
)
from lorawatch.analysis.allocator import CUBLAS_WORKSPACE_BYTES, free_blocks
from lorawatch.analysis.shape import LoraShape, ModelShape
from lorawatch.analysis.weights import Quantization, base_bytes

MIB, GIB = 1 << 20, 1 << 30
Moment = Literal["loss", "backward", "optimizer"]

# Beside torch's tensors, read on an H100 (driver 580, CUDA 13); the same in every run there to 16 MiB.
# What a process holds before its first tensor and loads during the run: the CUDA context with the kernels of torch, cuBLAS and
# the attention. The driver's used memory less torch's reserved memory less what the driver keeps.
CUDA_CONTEXT_BYTES = 767 * MIB
# What the driver counts as used with no process on the GPU.
DRIVER_BYTES = 480 * MIB
# NCCL's buffers and the kernels of its collectives: what each of two ranks over NVLink holds in addition.
NCCL_BYTES = 852 * MIB

TIGHT_SHARE = 0.95
"""From this share of a GPU's memory on, a run that fits is called tight: the estimate is right to a few percent."""


@dataclass(frozen=True)
class Workload:
    """The work of one GPU in a step.

    Attributes:
        shape: The model's.
        lora: The adapters'.
        batch: Sequences of a forward pass.
        sequence_length: Positions of the longest.
        dtype_bytes: Of the base weights: 2, trained under autocast, or 4.
        gradient_checkpointing: Whether activations are recomputed.
        gradient_accumulation: Forward passes a step.
        world_size: Ranks that train together.
        padded: Whether sequences of a batch differ in length.
        quantization: How the frozen linear layers are kept.
    """

    shape: ModelShape
    lora: LoraShape
    batch: int
    sequence_length: int
    dtype_bytes: int = 2
    gradient_checkpointing: bool = False
    gradient_accumulation: int = 1
    world_size: int = 1
    padded: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one GPU at its peak, in bytes.

    Attributes:
        weights: The frozen base model.
        adapters: FP32 adapters.
        gradients: Gradients of the adapters, as many as exist at the peak.
        optimizer: AdamW's two moments of each adapter weight.
        activations: What the backward pass needs, and the gradients inside a layer.
        logits: The loss in float32: its softmax and two gradients.
        ddp_buckets: DDP's copy of the gradients.
        workspace: cuBLAS's.
        allocator_slack: Reserved by torch's allocator and free at the peak.
        nccl: Buffers of the collectives.
        cuda_context: The process's context and kernels.
        driver: What the driver keeps on an idle GPU.
        moment: The moment of a step at which the peak occurs.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    ddp_buckets: int
    workspace: int
    allocator_slack: int
    nccl: int
    cuda_context: int
    driver: int
    moment: Moment

    @property
    def allocated_bytes(self) -> int:
        """torch.cuda.max_memory_allocated."""
        return self.reserved_bytes - self.allocator_slack

    @property
    def reserved_bytes(self) -> int:
        """torch.cuda.max_memory_reserved."""
        return self.device_bytes - self.nccl - self.cuda_context - self.driver

    @property
    def device_bytes(self) -> int:
        """The used memory that the driver and nvidia-smi show on a GPU that does nothing else."""
        return sum(self.breakdown().values())

    def breakdown(self) -> dict[str, int]:
        """The parts by name; they add up to `device_bytes`."""
        return {name: value for name, value in vars(self).items() if name != "moment"}


@dataclass(frozen=True)
class Fit:
    """Whether a run fits a GPU.

    Attributes:
        verdict: `tight` is a fit that leaves less than 5% of the memory.
        spare_bytes: Bytes that stay free; negative: bytes that are missing.
    """

    verdict: Literal["fits", "tight", "does not fit"]
    spare_bytes: int


def estimate(work: Workload) -> MemoryEstimate:
    """Peak memory of a rank of the reference engine: transformers' Trainer, SDPA attention, AdamW, DDP."""
    shape, lora = work.shape, work.lora
    given = Batch(work.batch, work.sequence_length, work.dtype_bytes, work.padded, work.quantization)
    adapters = lora.parameters(shape)
    gradients = 4 * adapters
    # Freed after each optimizer step; they exist in micro-batches after the first.
    standing = gradients if work.gradient_accumulation > 1 else 0
    layer = layer_activations(shape, lora, given)
    transient = layer_transient(shape, lora, given) - final_norm(shape, given)
    if work.gradient_checkpointing:
        kept = checkpointed_activations(shape, given)
        # Beside the inputs, one layer has all that it keeps; the last layer that is recomputed is the first.
        at_last, at_first = (
            kept + layer,
            kept - (shape.layers - 1) * given.tokens * shape.hidden * work.dtype_bytes + layer,
        )
    else:
        kept = model_activations(shape, lora, given)
        at_last, at_first = kept, kept - (shape.layers - 1) * layer
    # ForCausalLMLoss: in the backward pass the log-softmax that cross_entropy kept, its gradient and the gradient of the
    # float32 logits exist together. (Forward: 16-bit logits, float32 logits, log-softmax and accelerate's float32 copy
    # of the outputs, never more than this at a time.)
    logits = 12 * given.tokens * shape.vocabulary
    moments: tuple[tuple[Moment, int, int, int], ...] = (
        ("loss", kept, logits, standing),
        ("backward", kept + norm_transient(shape, given), 0, standing),
        ("backward", at_last + transient, 0, standing),
        ("backward", at_first + transient, 0, gradients),
        ("optimizer", 0, 0, gradients),
    )
    moment, activations, logits, live_gradients = max(moments, key=lambda m: m[1] + m[2] + m[3])
    several = work.world_size > 1
    return MemoryEstimate(
        weights=base_bytes(shape, work.dtype_bytes, work.quantization),
        adapters=4 * adapters,
        gradients=live_gradients,
        optimizer=8 * adapters,
        activations=activations,
        logits=logits,
        ddp_buckets=gradients if several else 0,
        workspace=2 * CUBLAS_WORKSPACE_BYTES,  # the main thread's and autograd's
        allocator_slack=free_blocks(
            shape, lora, given, at_loss=moment == "loss", checkpointing=work.gradient_checkpointing, ddp=several
        ),
        nccl=NCCL_BYTES if several else 0,
        cuda_context=CUDA_CONTEXT_BYTES,
        driver=DRIVER_BYTES,
        moment=moment,
    )


def verdict(needed: MemoryEstimate, memory_total_bytes: int) -> Fit:
    """Whether a GPU with this total memory, as the driver reports it, has room for a run.

    Torch returns free blocks before it fails, but a run cannot rely on that: the next step's logits, in 16 bits, then split
    the blocks that the loss needs whole. Llama-3.1-8B with 10 × 1024 tokens on 80 GB failed this way in its second step.
    """
    spare = memory_total_bytes - needed.device_bytes
    if spare < 0:
        return Fit("does not fit", spare)
    return Fit("fits" if needed.device_bytes <= TIGHT_SHARE * memory_total_bytes else "tight", spare)


def what_would_fit(work: Workload, memory_total_bytes: int) -> list[str]:
    """Changes of the recipe that make a run fit, each confirmed by the estimate.

    Returns:
        A line a change, the least disturbing first: a smaller batch, recomputed activations, shorter sequences, NF4 weights;
        the last three combined with others where one is not enough. Empty where the run fits already, and where nothing
        helps because the weights alone are too large.
    """
    advice: list[str] = []
    if verdict(estimate(work), memory_total_bytes).verdict == "fits":
        return advice
    for change in _changes(work, memory_total_bytes):
        words = []
        if change.quantization != work.quantization:
            words.append(f"model.quantization {change.quantization}")
        if change.gradient_checkpointing != work.gradient_checkpointing:
            words.append("train.gradient_checkpointing true")
        if change.batch != work.batch:
            words.append(f"train.batch_size_per_gpu {change.batch} instead of {work.batch}")
        if change.sequence_length != work.sequence_length:
            words.append(f"data.sequence_length {change.sequence_length} instead of {work.sequence_length}")
        advice.append(f"{' and '.join(words)}: {estimate(change).device_bytes / GIB:.1f} GiB")
    return advice


def _changes(work: Workload, memory_total_bytes: int) -> Iterator[Workload]:
    def fits(changed: Workload) -> bool:
        return verdict(estimate(changed), memory_total_bytes).verdict == "fits"

    def smaller(asked: Workload) -> Workload | None:
        sizes = (replace(asked, batch=n) for n in range(asked.batch - 1, 0, -1))
        return next((w for w in sizes if fits(w)), None)

    def shorter(asked: Workload) -> Workload | None:
        """Whole multiples of 64 positions, which are fast in attention's kernels."""
        low, high = 0, (asked.sequence_length - 1) // 64
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(replace(asked, sequence_length=64 * middle)) else (low, middle - 1)
        return replace(asked, sequence_length=64 * low) if low else None

    recomputing = replace(work, gradient_checkpointing=True)
    first = smaller(work)
    second = None
    if not work.gradient_checkpointing:
        second = recomputing if fits(recomputing) else smaller(recomputing)
    third = shorter(work) or shorter(replace(recomputing, batch=1))
    fourth = None
    if work.quantization != "nf4" and not work.lora.use_dora:
        quantized, both = replace(work, quantization="nf4"), replace(recomputing, quantization="nf4")
        fourth = next((w for w in (quantized, both) if fits(w)), None)
        fourth = fourth or smaller(quantized) or smaller(both) or shorter(replace(both, batch=1))
    yield from (w for w in (first, second, third, fourth) if w is not None)
