"""Bytes that torch's CUDA allocator holds beside the tensors: blocks that are free at a step's peak and fit no tensor.

A freed block is reused for a tensor that fits, cut to size, and goes back to the driver only when memory runs short
(c10/cuda/CUDACachingAllocator.cpp). The free blocks come from that algorithm, replayed over the tensors of three steps;
the counts below are the layer's tensors that are free while the loss is computed. tests/data/h100_memory.json has
the measured reserved bytes of GPUs.
"""

from __future__ import annotations

from collections import Counter

from lorawatch.analysis.activations import Batch
from lorawatch.analysis.shape import LINEARS, LoraShape, ModelShape

_MIB = 1 << 20
# Tensors over 1 and under 10 MiB are cut out of blocks of 20 MiB; larger ones have a block of their own.
_SHARED_FROM, _SHARED_TO, _SHARED_BLOCK = _MIB, 10 * _MIB, 20 * _MIB

CUBLAS_WORKSPACE_BYTES = 32 * _MIB
"""cuBLAS's workspace on Hopper, less elsewhere (aten/src/ATen/cuda/CublasHandlePool.cpp); one for each thread that
multiplies: the main thread and autograd's."""

# Tensors as wide as the MLP, and as the residual stream, free while the loss is computed: what a layer's forward pass makes
# and does not keep. With down_proj's adapter, its input in float32 is two more; recomputed layers keep nothing of theirs.
_MLP_TENSORS = {False: 1, True: 3}
_MLP_TENSORS_CHECKPOINTED = {False: 3, True: 4}
_RESIDUAL_TENSORS, _RESIDUAL_TENSORS_CHECKPOINTED = 5, 9
# Ends of blocks, rounded up to 2 MiB and shared by small tensors.
_ENDS_BYTES = 40 * _MIB


def free_blocks(
    shape: ModelShape, lora: LoraShape, batch: Batch, *, at_loss: bool, checkpointing: bool, ddp: bool
) -> int:
    """Bytes that are reserved and free at the peak.

    Args:
        shape: The model's.
        lora: The adapters'.
        batch: The input of a forward pass.
        at_loss: Whether the peak is where the loss is computed.
        checkpointing: Whether activations are recomputed.
        ddp: Whether several ranks train one model.
    """
    residual = batch.tokens * shape.hidden * batch.dtype_bytes
    total = _ENDS_BYTES + _between_weights(shape, batch.dtype_bytes, residual)
    if not at_loss:
        return total
    mlp = batch.tokens * shape.intermediate * batch.dtype_bytes
    down = "down_proj" in lora.targets
    if checkpointing:
        total += _MLP_TENSORS_CHECKPOINTED[down] * mlp + _RESIDUAL_TENSORS_CHECKPOINTED * residual
    else:
        total += _MLP_TENSORS[down] * mlp + _RESIDUAL_TENSORS * residual
    if lora.use_dora:  # the largest unit matrix that went through an adapter
        total += 4 * max(shape.linear(name)[0] for name in lora.targets) ** 2
    logits = 4 * batch.tokens * shape.vocabulary
    if batch.dtype_bytes == 2:
        total += logits // 2  # the forward pass's 16-bit logits; no float32 tensor of the loss fits into their block
    if not _workspace_has_room(shape, batch, mlp * (2 if checkpointing and down else 1), ddp):
        total += logits - CUBLAS_WORKSPACE_BYTES
    return total


def _workspace_has_room(shape: ModelShape, batch: Batch, largest: int, ddp: bool) -> bool:
    """Whether autograd's workspace finds a free block that the loss does not need.

    Autograd's thread asks for it in the first backward pass, when the loss's blocks are free, and keeps it. It takes the
    smallest block that it fits; where no tensor of a layer (the `largest` that can be spared) is as large, that is a block
    of float32 logits, and the second step reserves another.
    """
    if largest >= CUBLAS_WORKSPACE_BYTES:
        return True
    # DDP first sends the weights to every rank, from flat copies: that of the embedding table leaves a large block.
    return ddp and shape.vocabulary * shape.hidden * batch.dtype_bytes >= 4 * batch.tokens * shape.vocabulary


def _between_weights(shape: ModelShape, dtype_bytes: int, residual: int) -> int:
    """The unused ends of the blocks that weights share, if they are too small for the tensors of a layer."""
    total = 0
    sizes = Counter(dtype_bytes * inputs * outputs for inputs, outputs in map(shape.linear, LINEARS))
    for size, a_layer in sizes.items():
        if _SHARED_FROM < size < _SHARED_TO:
            count, in_block = a_layer * shape.layers, _SHARED_BLOCK // size
            if residual > _SHARED_BLOCK - in_block * size:
                total += -(-count // in_block) * _SHARED_BLOCK - count * size
    return total
