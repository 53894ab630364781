"""Bytes that a training step of a LoRA model keeps on the device for its backward pass, term by term.

From the source of transformers 5.17 (`models/llama/modeling_llama.py`, `loss/loss_utils.py`), peft 0.21 (`tuners/lora/layer.py`)
and torch's derivatives, for frozen weights, FP32 adapters and, on 16-bit weights, autocast as accelerate sets it up.
A tensor counts once, however many operations keep it. Checked against autograd itself by
tests/unit/test_analysis_memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.analysis.shape import ATTENTION_INPUTS, LINEARS, MLP_INPUTS, LoraShape, ModelShape
from lorawatch.analysis.weights import Quantization


@dataclass(frozen=True)
class Batch:
    """The input of a forward pass.

    Attributes:
        rows: Sequences.
        length: Positions of each, padding included.
        dtype_bytes: Of the base weights: 2 (autocast to that format), or 4 (no autocast).
        padded: Whether a row is shorter than the batch, so that attention takes a mask.
        quantization: Of the linear layers' weights.
    """

    rows: int
    length: int
    dtype_bytes: int = 2
    padded: bool = False
    quantization: Quantization = "none"

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return self.rows * self.length


def model_activations(shape: ModelShape, lora: LoraShape, batch: Batch) -> int:
    """Bytes that the decoder layers, the final norm and the rotary embedding keep without checkpointing; without the loss."""
    first = layer_activations(shape, lora, batch, first=True)
    return first + (shape.layers - 1) * layer_activations(shape, lora, batch) + _around(shape, batch)


def checkpointed_activations(shape: ModelShape, batch: Batch) -> int:
    """The same with gradient checkpointing: each layer keeps only its input."""
    # torch/utils/checkpoint.py, `_checkpoint_without_reentrant_generator`: the arguments are kept, what autograd saves is not.
    mask = batch.rows * batch.length**2 if batch.padded else 0
    return shape.layers * batch.tokens * shape.hidden * batch.dtype_bytes + mask + _around(shape, batch)


def layer_activations(shape: ModelShape, lora: LoraShape, batch: Batch, *, first: bool = False) -> int:
    """Bytes that one decoder layer keeps.

    Args:
        shape: The model's.
        lora: The adapters'.
        batch: The layer's input.
        first: Whether it is the first layer, whose input has no gradient: nothing before its first adapter is kept.
    """
    tokens, width = batch.tokens, batch.dtype_bytes
    wide = tokens * shape.intermediate * width
    reached = not first
    # LlamaDecoderLayer.forward: input_layernorm
    total = _norm(tokens, shape.hidden) if reached else 0
    total += _adapters(shape, lora, batch, ATTENTION_INPUTS, reached)
    queries, keys = (reached or name in lora.targets for name in ("q_proj", "k_proj"))
    reached |= any(name in lora.targets for name in ATTENTION_INPUTS)
    if reached:
        total += _attention(shape, batch, queries, keys)
    total += _adapters(shape, lora, batch, ("o_proj",), reached)
    reached |= "o_proj" in lora.targets
    if reached:  # post_attention_layernorm
        total += _norm(tokens, shape.hidden)
    total += _adapters(shape, lora, batch, MLP_INPUTS, reached)
    # LlamaMLP.forward, `act_fn(gate_proj(x)) * up_proj(x)`: SiLU keeps its input, the product the other factor of each
    # factor that has a gradient. A frozen linear layer keeps its weight only.
    gate, up = (reached or name in lora.targets for name in MLP_INPUTS)
    total += wide * (2 * gate + up)
    return total + _adapters(shape, lora, batch, ("down_proj",), gate or up)


def layer_transient(shape: ModelShape, lora: LoraShape, batch: Batch) -> int:
    """Bytes alive at the busiest point of a layer's forward or backward pass, beside what it keeps: usually of
    gradients in the MLP, behind down_proj."""
    size, down = batch.dtype_bytes, "down_proj" in lora.targets
    wide, narrow = batch.tokens * shape.intermediate, batch.tokens * shape.hidden
    # Gradients of the product and of its two factors; of the residual branch.
    usual = size * (3 * wide + narrow)
    if batch.quantization == "nf4":
        # bitsandbytes' MatMul4Bit dequantizes a whole weight, beside the gradient of its input. Where down_proj has an
        # adapter, the input itself is free by then.
        weight = max(inputs * outputs for inputs, outputs in map(shape.linear, LINEARS))
        return max(usual - size * wide * down, size * (weight + wide + narrow))
    if down and size == 2:
        # The adapter's input was cast to float32 (`_cast_input_dtype`) and its gradient goes back through that cast, beside
        # the gradient through the base weight; then those of the output, of the scaled output and of the residual branch.
        usual = (2 + 2 + 4) * wide + 2 * 3 * narrow
    if batch.quantization == "fp8":
        # fp8.quantize_rows of the MLP's product: that, and in float32 its values, scaled, and clamped; the residual branch.
        usual = max(usual, (2 + 3 * 4) * wide + 2 * 2 * narrow)
    return max(usual, _dora_transient(shape, lora, batch)) if lora.use_dora else usual


def _dora_transient(shape: ModelShape, lora: LoraShape, batch: Batch) -> int:
    """The busiest point of DoraLinearLayer.forward, or of its backward pass."""
    busiest = 0
    for name in lora.targets:
        inputs, outputs = shape.linear(name)
        weight, unit = inputs * outputs, inputs**2
        # `get_lora_weight` sends a unit matrix through the adapter; `get_weight_norm` adds its result to the weight.
        if batch.dtype_bytes == 2:
            busiest = max(busiest, 6 * batch.tokens * inputs + max(6 * unit + 2 * weight, 2 * unit + 16 * weight))
        else:
            busiest = max(busiest, 4 * unit + 12 * weight)
    if batch.dtype_bytes == 2 and any(name in lora.targets for name in MLP_INPUTS):
        # Outputs as wide as the MLP are float32 here, and so are their gradients on three paths.
        busiest = max(busiest, batch.tokens * (12 * shape.intermediate + 6 * shape.hidden))
    return busiest


def final_norm(shape: ModelShape, batch: Batch) -> int:
    """Bytes that the norm behind the last layer keeps; free before that layer's backward pass."""
    return _norm(batch.tokens, shape.hidden)


def norm_transient(shape: ModelShape, batch: Batch) -> int:
    """Bytes of gradients alive at the busiest point of a norm's backward pass: five float32 tensors."""
    return 5 * 4 * batch.tokens * shape.hidden


def _around(shape: ModelShape, batch: Batch) -> int:
    # LlamaModel.forward: the final norm; cos and sin of the rotary embedding, shared by all layers and rows.
    return final_norm(shape, batch) + 2 * batch.length * shape.head_size * batch.dtype_bytes


def _norm(tokens: int, width: int, groups: int = 1) -> int:
    # LlamaRMSNorm.forward: `hidden_states.to(torch.float32)`, which pow and the product keep, and rsqrt's result; the
    # product with the frozen weight keeps nothing of the tokens'. Float32 input is not copied, but kept nevertheless.
    return tokens * (4 * width + 4 * groups)


def _adapters(shape: ModelShape, lora: LoraShape, batch: Batch, names: tuple[str, ...], reached: bool) -> int:
    """Adapters on linear layers that share their input; `reached` where that input has a gradient."""
    on = [name for name in names if name in lora.targets]
    if not on:
        return 0
    tokens, width, rank = batch.tokens, batch.dtype_bytes, lora.rank
    # lora/bnb.py Linear4bit.forward leaves the cast of x to autocast; lora/layer.py does not.
    cast = width == 2 and batch.quantization != "nf4"
    total = 0
    for name in on:
        inputs, outputs = shape.linear(name)
        # lora/layer.py Linear.forward, `lora_B(lora_A(dropout(x)))`: B keeps A's result.
        total += tokens * rank * width
        if lora.dropout and reached:
            total += tokens * inputs  # its mask, a byte each
        if width == 2:  # autocast's 16-bit A and B are kept where their inputs have a gradient
            total += rank * outputs * 2
            total += rank * inputs * 2 if reached else 0
        if cast:
            # `_cast_input_dtype` makes x float32, autocast makes it 16-bit again for A, which keeps that copy; each
            # adapter has its own.
            total += tokens * inputs * 2
        elif lora.dropout:
            total += tokens * inputs * width  # x after dropout
        if lora.use_dora:
            total += _dora(shape, lora, batch, name, reached)
    if not cast and not lora.dropout and (names != ("o_proj",) or not reached or _plain_products(shape, batch)):
        total += tokens * shape.linear(on[0])[0] * width  # x itself, once; attention's output is kept by attention
    return total


def _dora(shape: ModelShape, lora: LoraShape, batch: Batch, name: str, reached: bool) -> int:
    # lora/dora.py DoraLinearLayer.forward: the magnitude's gradient needs the outputs of base and adapter; float32 vectors of
    # an output each are the norms, the scale, and the scale less one.
    inputs, outputs = shape.linear(name)
    total = 2 * batch.tokens * outputs * batch.dtype_bytes + 4 * outputs * (2 + reached)
    if lora.dropout and reached and batch.dtype_bytes == 2:
        total += 2 * inputs * outputs  # the base is computed again, with a copy of its weight
    return total


def _attention(shape: ModelShape, batch: Batch, queries: bool, keys: bool) -> int:
    tokens, width = batch.tokens, batch.dtype_bytes
    q, kv = shape.query_width, shape.kv_width
    total = 0
    if shape.qk_norm:  # Qwen3Attention.forward: q_norm and k_norm, a group a head
        total += _norm(tokens, q, shape.heads) if queries else 0
        total += _norm(tokens, kv, shape.kv_heads) if keys else 0
    # apply_rotary_pos_emb keeps only cos and sin.
    if _plain_products(shape, batch):
        # aten's _scaled_dot_product_attention_math: scaled queries, repeated keys and values, the scores after the softmax.
        return total + 3 * tokens * q * 4 + batch.rows * shape.heads * batch.length**2 * 4
    if batch.padded:
        # sdpa_attention.py: with a mask, keys and values are repeated to all heads (`repeat_kv`), and the boolean mask
        # becomes one of the queries' format in every layer, its rows aligned to 16.
        kv = q
        total += batch.rows * batch.length * (-(-batch.length // 16) * 16) * width
    # The fused kernels keep queries, keys, values, output, and a float32 logarithm a query and head.
    return total + tokens * (2 * q + 2 * kv) * width + tokens * shape.heads * 4


def _plain_products(shape: ModelShape, batch: Batch) -> bool:
    """Whether attention is computed from plain matrix products: no fused kernel takes float32 and grouped heads."""
    return batch.dtype_bytes == 4 and shape.kv_heads < shape.heads and not batch.padded
